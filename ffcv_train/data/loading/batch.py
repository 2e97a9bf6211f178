"""What a loader yields."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """On the device: `images` uint8 [B, 3, R, R], channels last; `labels` and `indices` (rows of the file), int64.

    `keys`, int64 [B] on the host, name the samples' random numbers: the index, plus N for each repetition of it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    keys: np.ndarray
