"""Antialiased resizing of a crop, as Pillow and torchvision (`antialias=True`) define it, in numba.

The filter (triangle for bilinear, Keys' cubic with a = −0.5 for bicubic) is stretched by the scale when shrinking, cut
off at the crop's edge and normalised. Both passes work in float32 with one rounding at the end; torchvision rounds in
between as well, so the two differ by at most a level or two.
"""

import numpy as np
from numba import njit

BILINEAR = 0
BICUBIC = 1
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}


def scratch_sizes(max_side: int, max_resolution: int) -> tuple[int, int]:
    """Elements that `resize_crop` needs in `row` and in `weights` for sources and targets up to these sides."""

    return 3 * max_side + 8, 2 * (4 * max(max_side, max_resolution) + 3 * max_resolution)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _filter(kind: int, x: float) -> float:
    x = abs(x)
    if kind == 0:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _taps(kind: int, source: int, target: int, first: np.ndarray, count: np.ndarray, weights: np.ndarray) -> int:
    """Fill first source index and number of taps of every target pixel, weights one after the other; return the most
    taps that a pixel has."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = stretch * (1.0 if kind == 0 else 2.0)
    position = 0
    most = 0
    for i in range(target):
        center = (i + 0.5) * scale
        low = max(0, int(center - support + 0.5))
        high = min(source, int(center + support + 0.5))
        total = 0.0
        for j in range(low, high):
            total += _filter(kind, (j - center + 0.5) / stretch)
        for j in range(low, high):
            weights[position] = _filter(kind, (j - center + 0.5) / stretch) / total
            position += 1
        first[i] = low
        count[i] = high - low
        most = max(most, high - low)
    return most


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def resize_crop(
    source: np.ndarray,
    width: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int,
    flip: bool,
    kind: int,
    target: np.ndarray,
    row: np.ndarray,
    weights: np.ndarray,
    spans: np.ndarray,
) -> None:
    """Resize a crop of `source` (uint8, flat RGB rows of `width` pixels) into `target` (uint8 [R, R, 3]).

    `flip` mirrors left to right. `row` and `weights` are float32 scratch of `scratch_sizes`, `spans` int32 [4, ≥ R].
    The crop must lie inside the source: nothing is checked here.
    """
    size = target.shape[0]
    half = len(weights) // 2
    down_first, down_count = spans[0, :size], spans[1, :size]
    across_first, across_count = spans[2, :size], spans[3, :size]
    down_weights, across_weights = weights[:half], weights[half:]
    _taps(kind, crop_height, size, down_first, down_count, down_weights)
    _taps(kind, crop_width, size, across_first, across_count, across_weights)
    stride = np.uint64(3 * width)
    length = 3 * crop_width
    line = row[:length]
    down = 0
    for y in range(size):
        start = np.uint64(top + down_first[y]) * stride + np.uint64(3 * left)
        w0 = down_weights[down]
        pixels = source[start : start + np.uint64(length)]
        for i in range(length):
            line[i] = w0 * pixels[i]
        # Two source rows per sweep halve the traffic of the accumulator.
        k = 1
        n = down_count[y]
        while k + 1 < n:
            start += stride
            upper = source[start : start + np.uint64(length)]
            start += stride
            lower = source[start : start + np.uint64(length)]
            w1, w2 = down_weights[down + k], down_weights[down + k + 1]
            for i in range(length):
                line[i] += w1 * upper[i] + w2 * lower[i]
            k += 2
        if k < n:
            start += stride
            pixels = source[start : start + np.uint64(length)]
            w1 = down_weights[down + k]
            for i in range(length):
                line[i] += w1 * pixels[i]
        down += n
        across = 0
        for x in range(size):
            r = np.float32(0.5)
            g = np.float32(0.5)
            b = np.float32(0.5)
            taps = np.uint64(across_count[x])
            p = np.uint64(3 * across_first[x])
            for t in range(taps):
                w = across_weights[np.uint64(across) + t]
                r += w * row[p]
                g += w * row[p + np.uint64(1)]
                b += w * row[p + np.uint64(2)]
                p += np.uint64(3)
            across += across_count[x]
            column = size - 1 - x if flip else x
            target[y, column, 0] = np.uint8(min(max(r, np.float32(0)), np.float32(255)))
            target[y, column, 1] = np.uint8(min(max(g, np.float32(0)), np.float32(255)))
            target[y, column, 2] = np.uint8(min(max(b, np.float32(0)), np.float32(255)))
