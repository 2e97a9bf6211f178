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
HEIGHT, WIDTH, FRAME, ENTROPY, INTERVAL, MCU_HEIGHT, MCU_WIDTH, HEADER_FIELDS = 0, 1, 2, 3, 4, 5, 6, 7
# Fancy upsampling of 4:2:0 chroma looks one chroma sample, two pixels, beyond the pixel it computes.
MARGIN = 2


@compiled(nogil=True)
def parse_header(data: np.ndarray, header: np.ndarray) -> bool:
    """Walk the marker segments of a JPEG (uint8 [N]) up to its first scan; False where they make no sense.

    `header` (int64 [HEADER_FIELDS]) takes height, width, the position of the height in the frame header, where the
    entropy-coded data begin, the restart interval (0 unless the file is a tile grid candidate: sequential, one scan
    of all components) and the size of an MCU in pixels. Nothing outside `data` is read.
    """
    header[:] = 0
    n = len(data)
    if n < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return False
    i, components, sequential = 2, 0, False
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
            if components or length < 11:
                return False
            components = int(data[i + 9])
            if length != 8 + 3 * components or components < 1:
                return False
            header[HEIGHT] = (int(data[i + 5]) << 8) | int(data[i + 6])
            header[WIDTH] = (int(data[i + 7]) << 8) | int(data[i + 8])
            header[FRAME] = i + 5
            sequential = (marker == 0xC0 or marker == 0xC1) and data[i + 4] == 8
            across, down = 1, 1
            if components > 1:  # a lone component has MCUs of one block, whatever its factors
                for c in range(components):
                    factors = data[i + 11 + 3 * c]
                    across, down = max(across, int(factors >> 4)), max(down, int(factors & 15))
            header[MCU_HEIGHT], header[MCU_WIDTH] = 8 * down, 8 * across
        elif marker == 0xDD:
            if length != 4:
                return False
            header[INTERVAL] = (int(data[i + 4]) << 8) | int(data[i + 5])
        elif marker == 0xDA:
            if not components or header[HEIGHT] == 0 or header[WIDTH] == 0:
                return False
            if length < 8 or length != 6 + 2 * int(data[i + 4]):
                return False
            header[ENTROPY] = i + 2 + length
            if not sequential or data[i + 4] != components:
                header[INTERVAL] = 0
            return True
        elif marker == 0xD9 or marker < 0xC0:
            return False
        i += 2 + length
    return False


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
    interval, mcu_height, mcu_width = header[INTERVAL], header[MCU_HEIGHT], header[MCU_WIDTH]
    per_row = (header[WIDTH] + mcu_width - 1) // mcu_width
    rows = (header[HEIGHT] + mcu_height - 1) // mcu_height
    if interval == 0 or per_row % interval != 0:
        return 0
    columns = per_row // interval
    tile_width = interval * mcu_width
    first_row = max(top - margin, 0) // mcu_height
    last_row = min((top + height + margin - 1) // mcu_height, rows - 1)
    first_column = max(left - margin, 0) // tile_width
    last_column = min((left + width + margin - 1) // tile_width, columns - 1)
    taken = (last_row - first_row + 1) * (last_column - first_column + 1)
    if taken * 10 > rows * columns * 9:
        return 0
    region[0], region[1] = first_row * mcu_height, first_column * tile_width
    region[2] = min((last_row + 1) * mcu_height, header[HEIGHT]) - region[0]
    region[3] = min((last_column + 1) * tile_width, header[WIDTH]) - region[1]

    start = header[ENTROPY]
    output[:start] = data[:start]
    frame = header[FRAME]
    output[frame], output[frame + 1] = region[2] >> 8, region[2] & 255
    output[frame + 2], output[frame + 3] = region[3] >> 8, region[3] & 255
    used = start
    base = address_of(data)
    end = np.uintp(len(data))
    begin = np.uintp(start)
    position = begin
    last_segment = last_row * columns + last_column
    segment, copied = 0, 0
    while True:
        # Find the end of this segment: a marker other than a stuffed 0xFF.
        while True:
            if position + np.uintp(2) > end:
                return -1
            found = _memchr(base + position, 0xFF, end - position - np.uintp(1))
            if found == 0:
                return -1
            position = found - base
            following = data[position + np.uintp(1)]
            if following != 0 and following != 0xFF:
                break
            # The second of two 0xFF may belong to the marker: the first is a fill byte then.
            position += np.uintp(2 if following == 0 else 1)
        marker = data[position + np.uintp(1)]
        is_last = segment == rows * columns - 1
        if (marker != 0xD9) if is_last else (marker != 0xD0 + (segment & 7)):
            return -1
        row, column = segment // columns, segment % columns
        if row >= first_row and first_column <= column <= last_column:
            size = int(position - begin)
            output[used : used + size] = data[begin:position]
            used += size
            output[used] = 0xFF
            copied += 1
            output[used + 1] = 0xD9 if segment == last_segment else 0xD0 + ((copied - 1) & 7)
            used += 2
            if segment == last_segment:
                return used
        position += np.uintp(2)
        begin = position
        segment += 1


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
