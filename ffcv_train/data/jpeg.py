"""Reading just enough of a JPEG to know that it is the image that the sample table describes."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def frame_size(data: np.ndarray) -> tuple[int, int]:
    """Height and width in pixels from the frame header of a JPEG (uint8 [N]); (0, 0) where there is none.

    Walks the marker segments of ITU-T T.81, annex B, and never reads outside `data`.
    """
    n = len(data)
    if n < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0
    i = 2
    while i + 4 <= n:
        if data[i] != 0xFF:
            return 0, 0
        marker = data[i + 1]
        if marker == 0xFF:
            i += 1
            continue
        length = (int(data[i + 2]) << 8) | int(data[i + 3])
        if length < 2:
            return 0, 0
        # SOF0 to SOF15, without DHT (C4), JPG (C8) and DAC (CC), which share the range.
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            if i + 9 > n:
                return 0, 0
            height = (int(data[i + 5]) << 8) | int(data[i + 6])
            width = (int(data[i + 7]) << 8) | int(data[i + 8])
            return height, width
        if marker == 0xDA:
            return 0, 0
        i += 2 + length
    return 0, 0
