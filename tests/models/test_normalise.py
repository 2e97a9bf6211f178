"""Normalisation against torchvision's."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser


def images(height: int = 17, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (5, 3, height, width), dtype=torch.uint8, generator=generator)
    batch[0, :, 0, 0], batch[0, :, 0, 1] = 0, 255
    return batch


def reference(batch: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return functional.normalize(batch.double() / 255, list(mean), list(std))


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3), ((0,) * 3, (1,) * 3)]
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_torchvision(mean: tuple[float, ...], std: tuple[float, ...], channels_last: bool) -> None:
    batch = images()
    if channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    found = Normaliser(mean, std)(batch)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), reference(batch, mean, std), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    batch = images()
    exact = Normaliser(IMAGENET_MEAN, IMAGENET_STD)(batch)
    assert torch.equal(Normaliser(IMAGENET_MEAN, IMAGENET_STD, dtype=dtype)(batch), exact.to(dtype))


def test_memory_format_is_an_option() -> None:
    batch = images().contiguous(memory_format=torch.channels_last)
    found = Normaliser(IMAGENET_MEAN, IMAGENET_STD, memory_format=torch.contiguous_format)(batch)
    assert found.is_contiguous()
    torch.testing.assert_close(found, Normaliser(IMAGENET_MEAN, IMAGENET_STD)(batch), rtol=0, atol=0)


def test_refuses_other_images() -> None:
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD)
    for batch in (images().float(), images()[0], images()[:, :1]):
        with pytest.raises(ValueError, match="uint8"):
            normalise(batch)
    for mean, std in (((0.5,), IMAGENET_STD), ((), ()), (IMAGENET_MEAN, (0.2, 0.0, 0.2))):
        with pytest.raises(ValueError, match="std"):
            Normaliser(mean, std)
