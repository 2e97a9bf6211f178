"""What a loader makes of each sample: an image, or several views of it from one decode."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop, crop_parameters
from ffcv_train.data.loading.batch import Batch, ViewBatch


@dataclass(frozen=True, eq=False)
class Views:
    """The crops that are made of a sample, and the form in which a batch has them."""

    parameters: np.ndarray
    """float64 [V, 8], `crop_parameters` of each"""
    sides: np.ndarray
    """int64 [V], in pixels"""
    several: bool = False
    """Whether batches are `ViewBatch`es"""
    stacked: bool = False
    """Whether the views are one tensor of them"""
    boxes: bool = False
    """Whether crops and flips are told"""

    @property
    def bytes_per_sample(self) -> int:
        """Of all views."""
        return int(3 * (self.sides**2).sum())

    def at(self, side: int) -> "Views":
        """The same with another side."""
        return dataclasses.replace(self, sides=np.full_like(self.sides, side))


def batch_of(
    views: Views,
    keys: np.ndarray,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    boxes: torch.Tensor | None = None,
    flips: torch.Tensor | None = None,
) -> Batch:
    """The batch, or the `ViewBatch` where `views` are several, of what its fields say.

    Its images lie in `pixels`: uint8, flat, one view [B, R, R, 3] after the other.
    """
    count, sides = len(keys), views.sides.tolist()
    parts = pixels.split([3 * count * side * side for side in sides])
    images = [part.view(count, side, side, 3).permute(0, 3, 1, 2) for part, side in zip(parts, sides, strict=True)]
    if not views.several:
        return Batch(images[0], labels, indices, keys)
    if views.stacked:
        stack = pixels.view(len(sides), count, sides[0], sides[0], 3).permute(1, 0, 4, 2, 3)
        made = ViewBatch(stack, labels, indices, keys, boxes, flips)
    else:
        made = ViewBatch(images, labels, indices, keys, boxes, flips)
    # The loaders' own users know batches of one view only; `data/loader.py` says what they are.
    return cast(Batch, made)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """All tensors of what `batch_of` has made."""
    images = batch.images if isinstance(batch.images, list) else [batch.images]
    return [*images, *(value for value in batch[1:] if isinstance(value, torch.Tensor))]


def views_of(
    crop: RandomResizedCrop | CenterCrop | None,
    resolution: int | None,
    views: int | Sequence[tuple[int, RandomResizedCrop]] | None = None,
    boxes: bool = False,
) -> Views:
    """One image per sample of `crop` and `resolution`; or as many views of them as `views` says; or those it lists."""
    if views is None or isinstance(views, int):
        assert crop is not None and resolution is not None
        count = views or 1
        parameters, sides = np.tile(crop_parameters(crop), (count, 1)), np.full(count, resolution)
        return Views(parameters, sides, views is not None, True, boxes)
    parameters = np.stack([crop_parameters(crop) for _, crop in views])
    return Views(parameters, np.array([side for side, _ in views]), True, False, boxes)
