"""TurboJPEG for compiled code, by way of libffcv, which is linked to it.

libffcv's own entry always asks for the fast DCT. With today's vector instructions the accurate one is no slower, and
the fast one brightens images by almost a level on average (docs/loader.md), so the library is called directly.
"""

import weakref
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.typing import signature

from ffcv_train.data.native import address_of

_init_decompress: Any = types.ExternalFunction("tjInitDecompress", signature(types.uintp))
_destroy: Any = types.ExternalFunction("tjDestroy", signature(types.int32, types.uintp))
_decompress: Any = types.ExternalFunction(
    "tjDecompress2",
    signature(
        types.int32,
        types.uintp,  # handle
        types.uintp,  # JPEG
        types.uint64,  # its bytes
        types.uintp,  # pixels
        types.int32,  # width
        types.int32,  # bytes per row, 0: width × 3
        types.int32,  # height
        types.int32,  # pixel format, 0: RGB
        types.int32,  # flags
    ),
)


class JpegDecoder:
    """A decoder's state for `decode_jpeg`, for one thread at a time; freed with the object."""

    def __init__(self) -> None:
        self.handle = _new()
        weakref.finalize(self, _free, self.handle)


@njit(cache=True, nogil=True)
def decode_jpeg(handle: int, address: int, size: int, height: int, width: int, pixels: np.ndarray) -> int:
    """Decode `size` bytes at `address` to RGB in `pixels` (uint8, at least height · width · 3); 0 on success.

    `handle` is a `JpegDecoder`'s. `height` and `width` are those of the JPEG, or of its reduction by 2, 4 or 8, rounded
    up. Nonzero also where the decoder met damage that it could have papered over.
    """
    return _decompress(
        np.uintp(handle),
        np.uintp(address),
        np.uint64(size),
        address_of(pixels),
        np.int32(width),
        np.int32(0),
        np.int32(height),
        np.int32(0),
        np.int32(0),
    )


@njit(cache=True)
def _new() -> int:
    return _init_decompress()


@njit(cache=True)
def _free(handle: int) -> None:
    _destroy(np.uintp(handle))
