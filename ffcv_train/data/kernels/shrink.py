"""Shrinking by area in numba: several times as fast as OpenCV's INTER_AREA, from which it differs by rounding only.

A target pixel is the mean over the rectangle of the source that it covers, pixels at its edges weighted by their share.
Sums are float32, rounded once. Imported where an image is to be shrunk, for importing numba takes a third of a second.
"""

import numpy as np

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.resample import LANES, ROWS, weighted_pixels, weighted_rows


def shrink_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` (uint8 [H, W, 3]) at `height` ≤ H × `width` ≤ W, each pixel the mean of the area that it covers."""
    target = np.empty((height, width, 3), np.uint8)
    _shrink(np.ascontiguousarray(image).reshape(-1), image.shape[0], image.shape[1], target)
    return target


@compiled(nogil=True, error_model="numpy")
def _shares(source: int, target: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First source index of each target pixel, the weights from there, a row for each pixel, and the row's length."""
    scale = source / target
    taps = min(source, int(np.ceil(scale)) + 1)  # no interval of this length touches more pixels
    first = np.empty(target, np.int64)
    weights = np.empty(target * taps, np.float32)
    for i in range(target):
        low, high = i * scale, (i + 1) * scale
        first[i] = min(int(low), source - taps)
        for k in range(taps):
            j = float(first[i] + k)
            weights[i * taps + k] = max(0.0, min(high, j + 1.0) - max(low, j)) / scale
    return first, weights, taps


@compiled(nogil=True, fastmath=True, error_model="numpy")
def _shrink(source: np.ndarray, height: int, width: int, target: np.ndarray) -> None:
    """`source` is flat."""
    rows, down, down_taps = _shares(height, target.shape[0])
    columns, across, across_taps = _shares(width, target.shape[1])
    stride, length = np.uint64(3 * width), 3 * target.shape[1]
    # The fourth lane of a row's last pixel lies behind it.
    pitch, step = 3 * width + LANES, length + LANES
    lines, sums = np.zeros(ROWS * pitch, np.float32), np.empty(ROWS * step, np.float32)
    pixels = target.reshape(-1)
    for y in range(0, target.shape[0], ROWS):
        count = min(ROWS, target.shape[0] - y)
        for k in range(count):
            line = lines[k * pitch : k * pitch + 3 * width]
            start = np.uint64(rows[y + k]) * stride
            weighted_rows(source, start, stride, down, (y + k) * down_taps, down_taps, line)
        for x in range(target.shape[1]):
            start, first = np.uint64(3 * columns[x]), np.uint64(x * across_taps)
            place = sums[3 * x :]
            weighted_pixels(
                lines, np.uint64(pitch), start, across, first, np.uint64(across_taps), place, np.uint64(step)
            )
        for k in range(count):
            row = sums[k * step : k * step + length]
            finished = pixels[(y + k) * length : (y + k + 1) * length]
            for i in range(length):
                finished[i] = np.uint8(np.int32(row[i]))
