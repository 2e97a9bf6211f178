"""A smaller JPEG of the same image behind a stored JPEG, for crops that need no more pixels than it has.

The image's JPEG, the level's JPEG, the level's number of bytes (little-endian, 32 bits), `LEVEL_MAGIC`: every other
reader stops at the end of the first JPEG.
"""

import numpy as np

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.jpeg import HEIGHT, WIDTH, parse_header

LEVEL_MAGIC = b"LEVL"
TRAILER_BYTES = 8
_L, _E, _V = LEVEL_MAGIC[0], LEVEL_MAGIC[1], LEVEL_MAGIC[2]


def level_size(height: int, width: int, share: float) -> tuple[int, int]:
    """Height and width of the level that has this share of an image's sides."""
    return max(1, round(height * share)), max(1, round(width * share))


def with_level(image: bytes, level: bytes) -> bytes:
    """What is stored of an image's JPEG and a smaller one of it."""
    return image + level + len(level).to_bytes(4, "little") + LEVEL_MAGIC


@compiled(nogil=True)
def level_of(data: np.ndarray) -> np.ndarray:
    """The level's JPEG in a stored sample (uint8 [N]), a view; empty where there is none."""
    n = len(data)
    end = n - TRAILER_BYTES
    if end < 1 or data[n - 4] != _L or data[n - 3] != _E or data[n - 2] != _V or data[n - 1] != _L:
        return data[:0]
    count = int(data[end]) | int(data[end + 1]) << 8 | int(data[end + 2]) << 16 | int(data[end + 3]) << 24
    return data[end - count : end] if count < end else data[:0]


@compiled(nogil=True)
def is_smaller(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether an image of `rows` × `columns` pixels can be one of `height` × `width` at a smaller size."""
    if not (1 <= rows <= height and 1 <= columns <= width):
        return False
    return abs(rows * width - columns * height) <= max(height, width)


@compiled(nogil=True)
def split_level(
    data: np.ndarray, header: np.ndarray, height: int, width: int
) -> tuple[bool, np.ndarray, np.ndarray, int, int]:
    """The image's JPEG in a stored sample, its level's (empty where there is none), and the level's height and width.

    Before them, False where the level is none of this image. `header` (int64 [HEADER_FIELDS]) is overwritten.
    """
    level = level_of(data)
    if len(level) == 0:
        return True, data, level, 0, 0
    if not parse_header(level, header) or not is_smaller(header[HEIGHT], header[WIDTH], height, width):
        return False, data, level, 0, 0
    return True, data[: len(data) - len(level) - TRAILER_BYTES], level, header[HEIGHT], header[WIDTH]


@compiled(nogil=True, error_model="numpy")
def serves(rows: int, columns: int, height: int, width: int, crop_height: int, crop_width: int, side: int) -> bool:
    """Whether a crop of an image of `height` × `width` has at least `side` pixels both ways in its level of `rows` ×
    `columns` (0 × 0: there is none), from which it is to be cut then."""
    return crop_height * (rows / height) >= side and crop_width * (columns / width) >= side
