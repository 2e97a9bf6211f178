"""Random erasing (Zhong et al., arXiv:1708.04896): a box of noise, as timm and DeiT have it."""

import math

import numpy as np
import torch
from torch import Tensor

from ffcv_train.augment.draws import ERASING, NOISE, stream_starts, to_device, uniforms

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

    The noise is a function of (seed, epoch, sample, position).
    """
    rows = np.flatnonzero(found[:, 2])
    if not len(rows):
        return images
    device, side = images.device, images.shape[-1]
    starts = stream_starts(seed, epoch, keys[rows], NOISE).view(np.int64)
    numbers = to_device(np.column_stack([rows, starts, found[rows]]), device)
    where, start = numbers[:, 0], numbers[:, 1]
    top, left, height, width = (numbers[:, column, None] for column in range(2, 6))
    pixel = torch.arange(side, device=device)
    inside_y, inside_x = (pixel >= top) & (pixel < top + height), (pixel >= left) & (pixel < left + width)
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    noise = _normal(start, images[0].numel()).view(len(rows), *images.shape[1:]).to(images.dtype)
    return images.index_copy_(0, where, torch.where(inside, noise, images[where]))


def _normal(starts: Tensor, count: int) -> Tensor:
    """Standard normal float32 [n, count] from the SplitMix64 streams that begin at `starts`, int64 [n]."""
    # The constants of draws.py as signed numbers; products wrap, and shifts must not drag the sign along.
    step = torch.arange(1, count + 1, device=starts.device) * -7046029254386353131
    z = starts[:, None] + step
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    # Box and Muller's transform of two numbers of 24 bits; the first is never 0.
    radius = (((z >> 40) & 0xFFFFFF) + 1).float() * 2.0**-24
    angle = ((z >> 16) & 0xFFFFFF).float() * (2 * math.pi * 2.0**-24)
    return (-2 * radius.log()).sqrt_() * angle.cos_()
