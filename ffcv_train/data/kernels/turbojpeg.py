"""TurboJPEG for compiled code, by way of libffcv, which is linked to it.

libffcv's own entry always asks for the fast DCT. With today's vector instructions the accurate one is no slower, and
the fast one darkens images by almost a level on average (docs/loader.md), so the library is called directly.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.typing import signature

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.native import address_of

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

_decompress_planes: Any = types.ExternalFunction(
    "tjDecompressToYUV2",
    signature(
        types.int32,
        types.uintp,  # handle
        types.uintp,  # JPEG
        types.uint64,  # its bytes
        types.uintp,  # samples
        types.int32,  # width
        types.int32,  # of what the bytes per row of a plane are a multiple
        types.int32,  # height
        types.int32,  # flags
    ),
)

# TJFLAG_STOPONWARNING, for a warning is an error here, and TJFLAG_LIMITSCANS (500): a small progressive file can ask
# for hours of work. Versions before 2.1 ignore what they do not know.
_FLAGS = np.int32(8192 | 32768)


@compiled(nogil=True)
def decode_jpeg(address: int, size: int, height: int, width: int, pixels: np.ndarray) -> int:
    """Decode `size` bytes at `address` to RGB in `pixels` (uint8, at least height · width · 3); 0 on success.

    `height` and `width` are those of the JPEG, or of its reduction by 2, 4 or 8, rounded up. Nonzero also where the
    decoder met damage that it could have papered over.
    """
    # One per image, for less than a microsecond: a decoder keeps its tables, and would lend them to an image without.
    handle = _init_decompress()
    failed = _decompress(
        handle,
        np.uintp(address),
        np.uint64(size),
        address_of(pixels),
        np.int32(width),
        np.int32(0),
        np.int32(height),
        np.int32(0),
        _FLAGS,
    )
    _destroy(handle)
    return failed


@compiled(nogil=True)
def decode_planes(address: int, size: int, height: int, width: int, samples: np.ndarray) -> int:
    """Decode `size` bytes at `address`, 4:2:0, to planes of Y, Cb and Cr, one after the other in `samples` (uint8).

    As `decode_jpeg`; but luma has rows and columns of an even number, and each chroma plane half as many.
    """
    handle = _init_decompress()
    failed = _decompress_planes(
        handle,
        np.uintp(address),
        np.uint64(size),
        address_of(samples),
        np.int32(width),
        np.int32(1),
        np.int32(height),
        _FLAGS,
    )
    _destroy(handle)
    return failed
