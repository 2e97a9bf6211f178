"""Random erasing (Zhong et al., arXiv:1708.04896): a box of noise, as timm and DeiT have it."""

import math

import numpy as np
import torch
from torch import Tensor

from ffcv_train.augment.draws import ERASING, NOISE, stream_starts, uniforms

_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_ATTEMPTS = 10


def boxes(probability: float, side: int, seed: int, epoch: int, keys: np.ndarray) -> np.ndarray:
    """int64 [B, 4]: top, left, height, width of each sample's box; of height and width 0 where nothing is erased.

    A box covers 2% to a third of the image, its log aspect ratio is uniform; the first of ten draws that fits is taken.
    """
    draws = uniforms(seed, epoch, keys, ERASING, 1 + 4 * _ATTEMPTS)
    area, aspect, down, right = np.moveaxis(draws[:, 1:].reshape(len(keys), _ATTEMPTS, 4), 2, 0)
    area = side * side * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
    low, high = (math.log(ratio) for ratio in _ASPECT)
    aspect = np.exp(low + (high - low) * aspect)
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (height < side) & (width < side)
    first = (np.arange(len(keys)), fits.argmax(axis=1))
    h, w = height[first], width[first]
    top, left = np.floor(down[first] * (side - h + 1)), np.floor(right[first] * (side - w + 1))
    erased = (draws[:, 0] < probability) & fits.any(axis=1)
    return np.where(erased[:, None], np.stack([top, left, h, w], axis=1), 0).astype(np.int64)


def erase(images: Tensor, found: np.ndarray, seed: int, epoch: int, keys: np.ndarray) -> Tensor:
    """Put standard normal noise into the boxes [B, 4] of normalised `images` [B, 3, R, R], in place; returns them.

    On one kind of device, the noise is a function of (seed, epoch, sample).
    """
    rows = np.flatnonzero(found[:, 2])
    generator = torch.Generator(images.device)
    starts = stream_starts(seed, epoch, keys[rows], NOISE) >> np.uint64(1)
    for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
        top, left, height, width = found[row].tolist()
        generator.manual_seed(start)
        noise = torch.randn(3, height, width, generator=generator, device=images.device)
        images[row, :, top : top + height, left : left + width] = noise
    return images
