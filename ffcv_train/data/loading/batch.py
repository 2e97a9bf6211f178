"""What a loader yields."""

from typing import Any, NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """A batch on the device; a named tuple, so that `images, labels, *_ = batch` works."""

    images: torch.Tensor
    """uint8 [B, 3, R, R], channels last"""
    labels: torch.Tensor
    """int64 [B]"""
    indices: torch.Tensor
    """int64 [B], the samples' positions in the data set"""
    keys: np.ndarray
    """int64 [B] on the host, name the samples' random numbers: the index, plus N for each repetition of it"""


class ViewBatch(NamedTuple):
    """A batch of several views of each sample, from a `Loader` with `views`; a named tuple as `Batch` is."""

    images: Any
    """With a number of views uint8 [B, V, 3, R, R], each `images[:, v]` channels last, and the views one after the
    other: `images.transpose(0, 1).flatten(0, 1)` copies nothing. With a list of them a list of uint8 [B, 3, R, R],
    channels last"""
    labels: torch.Tensor
    """int64 [B]"""
    indices: torch.Tensor
    """int64 [B], the samples' positions in the data set"""
    keys: np.ndarray
    """int64 [B] on the host, as in `Batch`"""
    boxes: torch.Tensor | None
    """Where asked for, int64 [B, V, 4]: top, left, height and width of each view's crop in pixels of the image"""
    flips: torch.Tensor | None
    """Where asked for, bool [B, V]: whether the crop is mirrored left to right"""
