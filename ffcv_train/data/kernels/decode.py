"""From stored bytes to cropped, resized, flipped pixels: the compiled inner loop of the loader.

`decode_samples` runs without the GIL on one thread's share of a batch, with that thread's scratch.
"""

from typing import Any

import numpy as np
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from ffcv_train.data.kernels import compile_cache, jpeg, level, modes, native, random, resample, turbojpeg
from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.crops import DCT_SCALING, FILTER, IS_RANDOM, center_crop, random_crop, scaled_box
from ffcv_train.data.kernels.jpeg import HEADER_FIELDS, HEIGHT, MARGIN, WIDTH, cut_tiles, parse_header
from ffcv_train.data.kernels.level import jpeg_for
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.kernels.native import address_of
from ffcv_train.data.kernels.random import seed_stream
from ffcv_train.data.kernels.resample import resize_crop, scratch_sizes
from ffcv_train.data.kernels.turbojpeg import decode_jpeg

OK = 0
BAD_HEADER = 1
BAD_JPEG = 2
BAD_LEVEL = 3
PROBLEMS = {
    BAD_HEADER: "is not a JPEG of the height and width in the sample table",
    BAD_JPEG: "is a damaged JPEG",
    BAD_LEVEL: "has a smaller level that is not a JPEG of its image",
}


def problem_of(problem: int, data: bytes) -> str:
    """What `decode_samples` met in a sample whose stored bytes are `data`, in words that follow the sample's name."""
    kind = jpeg.unsupported_kind(data) if problem == BAD_JPEG else ""
    return f"is a JPEG of an unsupported kind ({kind})" if kind else PROBLEMS[problem]


class Scratch:
    """What one thread needs while it decodes; allocated once."""

    def __init__(self, max_image_bytes: int, max_stored_bytes: int, max_side: int, max_resolution: int) -> None:
        row, weights = scratch_sizes(max_side, max_resolution)
        self.image = np.empty(max_image_bytes, np.uint8)
        self.row = np.zeros(row, np.float32)
        self.weights = np.empty(weights, np.float32)
        self.spans = np.empty((2, max_resolution), np.int32)
        self.state = np.zeros(1, np.uint64)
        self.tiles = np.empty(max_stored_bytes, np.uint8)
        self.header = np.empty(HEADER_FIELDS, np.int64)
        self.region = np.empty(4, np.int64)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As `decode_samples` takes it."""
        return (self.image, self.row, self.weights, self.spans, self.state, self.tiles, self.header, self.region)


@intrinsic
def as_pointer(typing_context: Any, address: Any) -> Any:
    """A uint8 pointer from an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.uintp), codegen


@compiled(nogil=True, error_model="numpy")
def decode_samples(
    samples: tuple[Any, ...],
    seed: int,
    epoch: int,
    parameters: np.ndarray,
    target: np.ndarray,
    scratch: tuple[Any, ...],
) -> tuple[int, int]:
    """Decode, crop, resize and flip samples into `target` (uint8 [n, R, R, 3]).

    `samples`: where each one's bytes lie in memory, uint64 [n], and how many there are, int64 [n]; modes, uint8 [n];
    heights and widths, int64 [n]; the numbers that key the random draw, int64 [n]. `parameters` are those of
    `crop_parameters`, `scratch` the `arguments` of a `Scratch`. Returns (position, problem) of the first sample that
    failed, or (−1, OK).
    """
    # Plain tuples: numba looks at the fields of a named one in Python at each call, and holds the GIL meanwhile.
    addresses, sizes, stored_as, heights, widths, keys = samples
    image, row, weights, spans, state, tiles, header, region = scratch
    kind, size = int(parameters[FILTER]), target.shape[1]
    for i in range(len(keys)):
        height, width = heights[i], widths[i]
        data = carray(as_pointer(np.uintp(addresses[i])), sizes[i])  # type: ignore[call-arg]
        drawn = parameters[IS_RANDOM] != 0.0
        if drawn:
            seed_stream(state, seed, epoch, keys[i])
            top, left, h, w, flip = random_crop(height, width, parameters, state)
            y, x, box_h, box_w = 0.0, 0.0, float(h), float(w)
        else:
            top, left, h, w, y, x, box_h, box_w = center_crop(height, width, parameters, size)
            flip = False
        pixels, stride = data, width
        if stored_as[i] == MODE_JPG:
            sound, stored, rows, columns = True, data, height, width
            if drawn:
                sound, stored, rows, columns = jpeg_for(data, header, height, width, h, w, size)
            if not sound:
                return i, BAD_LEVEL
            if rows != height or columns != width:
                down, across = rows / height, columns / width
                top, left, h, w, y, x, box_h, box_w = scaled_box(top, left, h, w, down, across, rows, columns)
            if not parse_header(stored, header) or header[HEIGHT] != rows or header[WIDTH] != columns:
                return i, BAD_HEADER
            address, used = np.uint64(address_of(stored)), np.uint64(len(stored))
            # A crop of at least twice the target is decoded at a half, a quarter, an eighth, where that is wished.
            reduction = 1
            while parameters[DCT_SCALING] > 0.0 and reduction < 8 and min(h, w) >= 2 * reduction * size:
                reduction *= 2
            # A pixel of the reduced image, which upsampling may look at, is as many of the whole.
            cut = cut_tiles(stored, header, top, left, h, w, tiles, region, max(MARGIN, reduction))
            if cut < 0:
                return i, BAD_JPEG
            if cut > 0:
                address, used = np.uint64(address_of(tiles)), np.uint64(cut)
                top, left, rows, columns = top - region[0], left - region[1], region[2], region[3]
            if reduction > 1:
                rows, columns = -(-rows // reduction), -(-columns // reduction)
                part = 1.0 / reduction
                top, left, h, w, y, x, box_h, box_w = scaled_box(
                    top + y, left + x, box_h, box_w, part, part, rows, columns
                )
            if decode_jpeg(address, used, rows, columns, image) != 0:
                return i, BAD_JPEG
            pixels, stride = image, columns
        resize_crop(pixels, stride, top, left, h, w, y, x, box_h, box_w, flip, kind, target[i], row, weights, spans)
    return -1, OK


compile_cache.forget_outdated(
    (random_crop, center_crop, scaled_box, decode_samples), (jpeg, level, modes, native, random, resample, turbojpeg)
)
