"""From uint8 images to normalised floats, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normaliser:
    """(x / 255 − mean) / std for uint8 images x [B, 3, H, W], as one fused multiply-add.

    `mean` and `std` are per channel, for images in [0, 1]. The result has `dtype` and `memory_format`; it is computed
    in float32 and rounded once, so float16 and bfloat16 results carry no error but the rounding of the result.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"need a mean and a positive std per channel, not {mean} and {std}")
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.dtype, self.memory_format = dtype, memory_format
        scale = [1 / (255 * s) for s in self.std]
        bias = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._bias = torch.tensor(bias, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    @property
    def device(self) -> torch.device:
        return self._scale.device

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] for uint8 images of that shape, on the same device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"need uint8 images [B, {len(self.mean)}, H, W], not {images.dtype} {list(images.shape)}")
        result = torch.empty_like(images, dtype=self.dtype, memory_format=self.memory_format)
        return torch.addcmul(self._bias, images, self._scale, out=result)
