"""What a loader yields."""

from typing import NamedTuple

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
