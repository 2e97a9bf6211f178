"""Reading a baseline JPEG's structure, and cutting the part that a crop needs into a small JPEG of its own.

A JPEG with restart markers (ITU-T T.81, B.2.4.4) is a row of segments that decode independently. Where the restart
interval divides a row of MCUs, the segments form a grid of tiles; the tiles that cover a crop, with their markers
numbered anew and the frame's height and width patched, are a valid JPEG that costs only its own area to decode.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.typing import signature

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.native import address_of

_memchr: Any = types.ExternalFunction("memchr", signature(types.uintp, types.uintp, types.int32, types.uintp))

# Fields of a parsed header (int64 array).
HEIGHT, WIDTH, FRAME, ENTROPY, INTERVAL, MCU_HEIGHT, MCU_WIDTH, HALVED, HEADER_FIELDS = range(9)
# Fancy upsampling of 4:2:0 chroma looks one chroma sample, two pixels, beyond the pixel it computes.
MARGIN = 2


@compiled(nogil=True)
def parse_header(data: np.ndarray, header: np.ndarray) -> bool:
    """Walk the marker segments of a JPEG (uint8 [N]) up to its first scan; False where they make no sense.

    `header` (int64 [HEADER_FIELDS]) takes height, width, the position of the height in the frame header, where the
    entropy-coded data begin, the restart interval (0 unless the file is a tile grid candidate: sequential, one scan
    of all components), the size of an MCU in pixels, and whether it is such a file of Y, Cb and Cr in 4:2:0. Nothing
    outside `data` is read.
    """
    header[:] = 0
    n = len(data)
    if n < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return False
    i, components, sequential, adobe = 2, 0, False, False
    while i + 4 <= n:
        if data[i] != 0xFF:
            return False
        marker = data[i + 1]
        if marker == 0xFF:  # a fill byte
            i += 1
            continue
        length = (int(data[i + 2]) << 8) | int(data[i + 3])
        if length < 2 or i + 2 + length > n:
            return False
        # SOF0 to SOF15, without DHT (C4), JPG (C8) and DAC (CC), which share the range.
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            if components:
                return False
            components = _parse_frame(data, i, length, header)
            if components == 0:
                return False
            sequential = (marker == 0xC0 or marker == 0xC1) and data[i + 4] == 8
        elif marker == 0xDD:
            if length != 4:
                return False
            header[INTERVAL] = (int(data[i + 4]) << 8) | int(data[i + 5])
        elif marker == 0xEE:  # Adobe's, which may say that the components are red, green and blue
            adobe = True
        elif marker == 0xDA:
            if not components or header[HEIGHT] == 0 or header[WIDTH] == 0:
                return False
            if length < 8 or length != 6 + 2 * int(data[i + 4]):
                return False
            header[ENTROPY] = i + 2 + length
            one_scan = sequential and data[i + 4] == components
            if not one_scan:
                header[INTERVAL] = 0
            if not one_scan or adobe:
                header[HALVED] = 0
            return True
        elif marker == 0xD9 or marker < 0xC0:
            return False
        i += 2 + length
    return False


@compiled(nogil=True)
def _parse_frame(data: np.ndarray, i: int, length: int, header: np.ndarray) -> int:
    """The fields of the frame header at `i`, which is `length` bytes long and lies within `data`; return the number of
    components, 0 where it makes no sense."""
    components = int(data[i + 9]) if length >= 11 else 0
    if length != 8 + 3 * components:
        return 0
    header[HEIGHT] = (int(data[i + 5]) << 8) | int(data[i + 6])
    header[WIDTH] = (int(data[i + 7]) << 8) | int(data[i + 8])
    header[FRAME] = i + 5
    across, down = 1, 1
    header[HALVED] = components == 3
    for c in range(components):
        number, factors = data[i + 10 + 3 * c], data[i + 11 + 3 * c]
        if number != c + 1 or factors != (0x22 if c == 0 else 0x11):
            header[HALVED] = 0
        if components > 1:  # a lone component has MCUs of one block, whatever its factors
            across, down = max(across, int(factors >> 4)), max(down, int(factors & 15))
    header[MCU_HEIGHT], header[MCU_WIDTH] = 8 * down, 8 * across
    return components


@compiled(nogil=True)
def cut_tiles(
    data: np.ndarray,
    header: np.ndarray,
    top: int,
    left: int,
    height: int,
    width: int,
    output: np.ndarray,
    region: np.ndarray,
    margin: int = MARGIN,
) -> int:
    """Write a JPEG of the tiles that cover a crop to `output` (uint8) and say how many bytes it has.

    0: the file is no grid of tiles, or the crop needs nearly all of it; decode it whole. −1: its markers do not
    stand where they must. `region` (int64 [4]) takes the tiles' top, left, height and width in pixels. Pixels of the
    crop decode to the same values as in the whole image, given the `margin` around them.
    """
    rows, columns = _grid_of(header)
    if columns == 0:
        return 0
    tile_height, tile_width = header[MCU_HEIGHT], header[INTERVAL] * header[MCU_WIDTH]
    first_row = max(top - margin, 0) // tile_height
    last_row = min((top + height + margin - 1) // tile_height, rows - 1)
    first_column = max(left - margin, 0) // tile_width
    last_column = min((left + width + margin - 1) // tile_width, columns - 1)
    taken = (last_row - first_row + 1) * (last_column - first_column + 1)
    if taken * 10 > rows * columns * 9:
        return 0
    region[0], region[1] = first_row * tile_height, first_column * tile_width
    region[2] = min((last_row + 1) * tile_height, header[HEIGHT]) - region[0]
    region[3] = min((last_column + 1) * tile_width, header[WIDTH]) - region[1]

    used = _copy_head(data, header, region, output)
    begin, copied, last = header[ENTROPY], 0, last_row * columns + last_column
    for segment in range(last + 1):
        end = _next_marker(data, begin)
        if end < 0:
            return -1
        expected = 0xD9 if segment == rows * columns - 1 else 0xD0 + (segment & 7)
        if data[end + 1] != expected:
            return -1
        if segment >= first_row * columns and first_column <= segment % columns <= last_column:
            size = end - begin
            output[used : used + size] = data[begin:end]
            used += size
            output[used], output[used + 1] = 0xFF, (0xD9 if segment == last else 0xD0 + (copied & 7))
            used += 2
            copied += 1
        begin = end + 2
    return used


@compiled(nogil=True)
def _grid_of(header: np.ndarray) -> tuple[int, int]:
    """Rows and columns of the grid of tiles; no columns where there is none."""
    per_row = (header[WIDTH] + header[MCU_WIDTH] - 1) // header[MCU_WIDTH]
    rows = (header[HEIGHT] + header[MCU_HEIGHT] - 1) // header[MCU_HEIGHT]
    if header[INTERVAL] == 0 or per_row % header[INTERVAL] != 0:
        return rows, 0
    return rows, per_row // header[INTERVAL]


@compiled(nogil=True)
def _copy_head(data: np.ndarray, header: np.ndarray, region: np.ndarray, output: np.ndarray) -> int:
    """Copy what stands before the entropy-coded data, with the size of `region` in it; return how many bytes it has."""
    start, frame = header[ENTROPY], header[FRAME]
    output[:start] = data[:start]
    output[frame], output[frame + 1] = region[2] >> 8, region[2] & 255
    output[frame + 2], output[frame + 3] = region[3] >> 8, region[3] & 255
    return start


@compiled(nogil=True)
def _next_marker(data: np.ndarray, begin: int) -> int:
    """Where the first marker from `begin` on stands in entropy-coded data, −1 without one."""
    base, end, position = address_of(data), np.uintp(len(data)), np.uintp(begin)
    while position + np.uintp(2) <= end:
        found = _memchr(base + position, 0xFF, end - position - np.uintp(1))
        if found == 0:
            return -1
        position = found - base
        following = data[position + np.uintp(1)]
        if following != 0 and following != 0xFF:
            return int(np.int64(position))
        # Stuffed; or the second of two 0xFF may belong to the marker: the first is a fill byte then.
        position += np.uintp(2 if following == 0 else 1)
    return -1


@compiled(nogil=True)
def scans_are_whole(data: np.ndarray, header: np.ndarray) -> bool:
    """Whether the scans of a JPEG (uint8 [N], parsed into `header`) reach its end, restart markers in their order.

    What lies between markers is not looked at.
    """
    base, end, position = address_of(data), len(data), int(header[ENTROPY])
    restarts = 0
    while position + 2 <= end:
        found = _memchr(base + np.uintp(position), 0xFF, np.uintp(end - position - 1))
        if found == 0:
            return False
        position = int(found - base)
        marker = data[position + 1]
        if marker == 0xD9:
            return True
        if marker == 0 or marker == 0xFF:
            # A stuffed byte; or a fill byte, and the second of the two may belong to the marker.
            position += 2 if marker == 0 else 1
        elif 0xD0 <= marker <= 0xD7:
            if marker != 0xD0 + (restarts & 7):
                return False
            restarts += 1
            position += 2
        else:  # a segment before a further scan
            if position + 4 > end:
                return False
            position += 2 + ((int(data[position + 2]) << 8) | int(data[position + 3]))
            restarts = 0
    return False


def frame_size(data: np.ndarray) -> tuple[int, int]:
    """Height and width in pixels of a JPEG (uint8 [N]); (0, 0) where its header makes no sense."""
    header = np.zeros(HEADER_FIELDS, np.int64)
    return (int(header[HEIGHT]), int(header[WIDTH])) if parse_header(data, header) else (0, 0)


_FRAMES = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic-coded"}


def unsupported_kind(data: bytes) -> str:
    """What makes a JPEG one that TurboJPEG does not decode to RGB pixels of 8 bits; "" where nothing does."""
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind = _FRAMES.get(marker, "" if marker < 0xC9 else "arithmetic-coded or hierarchical")
            precision, components = data[position + 4], data[position + 9]
            if not kind and precision != 8:
                kind = f"{precision}-bit"
            return kind or ("CMYK" if components == 4 else "")
        if marker == 0xDA:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return ""
