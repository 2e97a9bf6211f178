"""From stored bytes to what a decoder elsewhere needs of them: the compiled half of decoding on the device.

Draws the crop as `decode_samples` does, and leaves the JPEG of the tiles that it touches, or its raw pixels.
"""

from typing import Any

import numpy as np
from numba import carray

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.crops import random_crop, scaled_box
from ffcv_train.data.kernels.decode import BAD_HEADER, BAD_JPEG, BAD_LEVEL, OK, as_pointer
from ffcv_train.data.kernels.jpeg import HEADER_FIELDS, HEIGHT, MARGIN, WIDTH, cut_tiles, parse_header, scans_are_whole
from ffcv_train.data.kernels.level import serves, split_level
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.kernels.random import seed_stream

# Columns of a piece's description (float64 [n, FIELDS]).
END, ROWS, COLUMNS = 0, 1, 2
TOP, LEFT, TALL, WIDE = 3, 4, 5, 6
Y, X, BOX_HEIGHT, BOX_WIDTH = 7, 8, 9, 10
FLIP, RAW, FIELDS = 11, 12, 13


def cutting_scratch() -> tuple[np.ndarray, ...]:
    """What one call of `cut_samples` writes to meanwhile."""
    return np.zeros(1, np.uint64), np.empty(HEADER_FIELDS, np.int64), np.empty(4, np.int64)


@compiled(nogil=True, error_model="numpy")
def cut_samples(
    samples: tuple[Any, ...],
    seed: int,
    epoch: int,
    parameters: np.ndarray,
    side: int,
    output: np.ndarray,
    pieces: np.ndarray,
    scratch: tuple[Any, ...],
) -> tuple[int, int]:
    """Write what random crops of `side` pixels need of samples to `output` (uint8, as many bytes as the samples have).

    `samples` are those of `decode_samples`, `parameters` those of `crop_parameters`, `scratch` is `cutting_scratch()`.
    Pieces stand one after another; `pieces` (float64 [n, FIELDS]) takes where each ends in `output`, its size in
    pixels, the whole pixels (top, left, height, width) that the crop may read, the crop (y, x, height, width) within
    them, whether it is mirrored, and whether the piece is raw pixels. Returns (position, problem) of the first sample
    that failed, or (−1, OK).
    """
    addresses, sizes, stored_as, heights, widths, keys = samples
    state, header, region = scratch
    used = 0
    for i in range(len(keys)):
        height, width = heights[i], widths[i]
        data = carray(as_pointer(np.uintp(addresses[i])), sizes[i])  # type: ignore[call-arg]
        seed_stream(state, seed, epoch, keys[i])
        top, left, h, w, flip = random_crop(height, width, parameters, state)
        y, x, box_h, box_w = 0.0, 0.0, float(h), float(w)
        if stored_as[i] == MODE_JPG:
            sound, stored, level, rows, columns = split_level(data, header, height, width)
            if not sound:
                return i, BAD_LEVEL
            if serves(rows, columns, height, width, h, w, side):
                stored = level
                down, across = rows / height, columns / width
                top, left, h, w, y, x, box_h, box_w = scaled_box(top, left, h, w, down, across, rows, columns)
            else:
                rows, columns = height, width
            if not parse_header(stored, header) or header[HEIGHT] != rows or header[WIDTH] != columns:
                return i, BAD_HEADER
            size = len(stored)
            cut = cut_tiles(stored, header, top, left, h, w, output[used : used + size], region, MARGIN)
            if cut < 0:
                return i, BAD_JPEG
            if cut > 0:
                used += cut
                top, left, rows, columns = top - region[0], left - region[1], region[2], region[3]
            else:
                # Decoders elsewhere may paper over what is missing.
                if not scans_are_whole(stored, header):
                    return i, BAD_JPEG
                output[used : used + size] = stored
                used += size
        else:
            for row in range(h):
                start = 3 * ((top + row) * width + left)
                output[used : used + 3 * w] = data[start : start + 3 * w]
                used += 3 * w
            top, left, rows, columns = 0, 0, h, w
        piece = pieces[i]
        piece[END], piece[ROWS], piece[COLUMNS] = used, rows, columns
        piece[TOP], piece[LEFT], piece[TALL], piece[WIDE] = top, left, h, w
        piece[Y], piece[X], piece[BOX_HEIGHT], piece[BOX_WIDTH] = y, x, box_h, box_w
        piece[FLIP], piece[RAW] = flip, stored_as[i] != MODE_JPG
    return -1, OK
