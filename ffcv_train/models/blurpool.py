"""BlurPool: a low-pass filter before strided convolutions (Zhang, arXiv:1904.11486), as in FFCV's ImageNet script."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16


class BlurPoolConv2d(nn.Module):
    """`conv` on blurred input: each channel is filtered by [1 2 1] ⊗ [1 2 1] / 16, with zeros beyond the border.

    (Zhang's own code reflects at the border.) The state dict is that of FFCV's class of this name, `conv.weight` and
    `blur_filter`, so that FFCV's tools load it and a network without the filter refuses it. A convolution of one pixel
    leaves its stride to the filter, whose other results it would drop.
    """

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
        kernel = kernel.to(conv.weight).expand(conv.in_channels, 1, 3, 3).contiguous()
        self.register_buffer("blur_filter", kernel)
        self.conv = conv
        # What networks read of their convolutions.
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.filter_stride = [1, 1]
        if conv.kernel_size == (1, 1) and conv.padding == (0, 0):
            self.filter_stride, conv.stride = list(conv.stride), (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, C', H', W'] of `images` [B, C, H, W]."""
        kernel = self.blur_filter
        return self.conv(F.conv2d(images, kernel, None, self.filter_stride, [1, 1], [1, 1], kernel.shape[0]))


def apply_blurpool(model: nn.Module) -> list[str]:
    """Blur the input of every strided `nn.Conv2d` of 16 or more input channels in `model`; returns their names."""
    strided = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= MIN_CHANNELS
    }
    for name, conv in strided.items():
        model.set_submodule(name, BlurPoolConv2d(conv))
    return list(strided)


def blurred_layers(model: nn.Module) -> list[str]:
    """The names of the blurred convolutions in `model`."""
    return [name for name, module in model.named_modules() if isinstance(module, BlurPoolConv2d)]


def with_filters(state: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """The state dict of a blurred network in the keys that `model`, one like it, has now.

    In checkpoints of version 0.1 filters are in no state dict, and convolutions have the plain network's keys.
    """
    layers = [name for name in blurred_layers(model) if f"{name}.blur_filter" not in state]
    found = OrderedDict((_within(key, layers), value) for key, value in state.items())
    found.update((f"{name}.blur_filter", model.get_buffer(f"{name}.blur_filter")) for name in layers)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        found._metadata = dict(metadata)  # type: ignore[attr-defined]
    return found


def _within(key: str, layers: list[str]) -> str:
    layer, _, leaf = key.rpartition(".")
    return f"{layer}.conv.{leaf}" if layer in layers else key
