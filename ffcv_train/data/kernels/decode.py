"""From stored bytes to cropped, resized, flipped pixels: the compiled inner loop of the loader.

A sample becomes one or several views, of one decode of the region that holds all their crops. `decode_samples` runs
without the GIL on one thread's share of a batch, with that thread's scratch.
"""

from typing import Any

import numpy as np
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from ffcv_train.data.kernels import jpeg
from ffcv_train.data.kernels.chroma import clamped_excess, convert_planes, upsampling_scratch
from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.crops import (
    DCT_SCALING,
    FILTER,
    IS_RANDOM,
    center_crop,
    random_crop,
    scaled_box,
)
from ffcv_train.data.kernels.jpeg import HALVED, HEADER_FIELDS, HEIGHT, MARGIN, WIDTH, cut_tiles, parse_header
from ffcv_train.data.kernels.level import serves, split_level
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.kernels.native import address_of
from ffcv_train.data.kernels.planes import plane_scratch, resize_planes
from ffcv_train.data.kernels.random import seed_stream
from ffcv_train.data.kernels.resample import resize_crop, scratch_sizes
from ffcv_train.data.kernels.turbojpeg import decode_jpeg, decode_planes

# Columns of what is planned for a crop (float64 [crops, PLAN_FIELDS]): the whole pixels that it reads of the JPEG that
# serves it, the crop within them, its flip, where it goes in the target, and its decode. Crops of one decode have the
# same number there: by how much the JPEG is reduced, negative for the level's; 0 when the crop is made.
TOP, LEFT, TALL, WIDE, Y, X, BOX_HEIGHT, BOX_WIDTH, FLIP, START, DECODE, PLAN_FIELDS = range(12)

# Levels by which a crop's pixels may lie outside of the RGB cube, on average, for its planes to be resized apart.
MOST_EXCESS = 0.5

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
    """What one thread needs while it decodes; allocated once.

    `crops` is how many crops one decode may serve: at least the views of a sample, more where it is repeated in a row.
    """

    def __init__(
        self, max_image_bytes: int, max_stored_bytes: int, max_side: int, max_resolution: int, crops: int = 1
    ) -> None:
        row, weights = scratch_sizes(max_side, max_resolution)
        self.image = np.empty(max_image_bytes, np.uint8)
        self.row = np.zeros(row, np.float32)
        self.weights = np.empty(weights, np.float32)
        self.spans = np.empty((2, max_resolution), np.int32)
        self.state = np.zeros(1, np.uint64)
        self.tiles = np.empty(max_stored_bytes, np.uint8)
        self.header = np.empty(HEADER_FIELDS, np.int64)
        self.region = np.empty(4, np.int64)
        self.plan = np.empty((crops, PLAN_FIELDS))
        # A file of pixels has no planes.
        coded_side, coded_resolution = (max_side, max_resolution) if max_image_bytes else (0, 0)
        (self.columns, self.chroma_weights, self.chroma_spans, self.woven, self.starts, self.lanes) = plane_scratch(
            coded_side, coded_resolution
        )
        self.converted = np.empty(max_image_bytes, np.uint8)
        self.sums, self.lines = upsampling_scratch(coded_side)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As `decode_samples` takes it."""
        cutting, resizing = (self.tiles, self.header, self.region), (self.row, self.weights, self.spans)
        planewise = (self.columns, self.chroma_weights, self.chroma_spans, self.woven, self.starts, self.lanes)
        converting = (self.converted, self.sums, self.lines)
        return self.image, self.state, self.plan, cutting, (resizing, planewise, converting)


@intrinsic
def as_pointer(typing_context: Any, address: Any) -> Any:
    """A uint8 pointer from an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.uintp), codegen


@compiled(nogil=True, error_model="numpy")
def _crops_of_one_decode(addresses: np.ndarray, i: int, views: int, most: int) -> int:
    """How many crops, `most` at most, are made of sample `i`: its views, and those of its repetitions in a row."""
    crops = views
    while i + crops // views < len(addresses) and addresses[i + crops // views] == addresses[i]:
        if crops + views > most:
            break
        crops += views
    return crops


@compiled(nogil=True, error_model="numpy")
def _plan_crops(
    plan: np.ndarray,
    sample: tuple[Any, ...],
    views: tuple[Any, ...],
    seed: int,
    epoch: int,
    keys: np.ndarray,
    first: int,
    count: int,
    state: np.ndarray,
) -> None:
    """Draw the crops of a sample and of its repetitions, whose `keys` come first, and choose what each is cut from.

    `sample` is its height and width, those of its level or 0, 0, and whether it is a JPEG. It is number `first` of the
    `count` of a batch.
    """
    height, width, rows, columns, coded = sample
    parameters, sides = views
    before = 0
    for crop in range(len(plan)):
        view, repetition = crop % len(sides), crop // len(sides)
        wanted, size, own = parameters[view], sides[view], plan[crop]
        if wanted[IS_RANDOM] != 0.0:
            seed_stream(state, seed, epoch, keys[repetition], view)
            top, left, h, w, flip = random_crop(height, width, wanted, state)
            y, x, box_h, box_w = 0.0, 0.0, float(h), float(w)
        else:
            top, left, h, w, y, x, box_h, box_w = center_crop(height, width, wanted, size)
            flip = False
        reduction, sign = 1, 1
        if serves(rows, columns, height, width, h, w, size):
            down, across, sign = rows / height, columns / width, -1
            top, left, h, w, y, x, box_h, box_w = scaled_box(top, left, h, w, down, across, rows, columns)
        # A crop of at least twice the target is decoded at a half, a quarter, an eighth, where that is wished.
        while coded and wanted[DCT_SCALING] > 0.0 and reduction < 8 and min(h, w) >= 2 * reduction * size:
            reduction *= 2
        own[TOP], own[LEFT], own[TALL], own[WIDE] = top, left, h, w
        own[Y], own[X], own[BOX_HEIGHT], own[BOX_WIDTH] = y, x, box_h, box_w
        own[FLIP], own[DECODE] = flip, sign * reduction
        before = before if view > 0 else 0
        own[START] = 3 * (before * count + (first + repetition) * size * size)
        before += size * size


@compiled(nogil=True, error_model="numpy")
def _region_of(plan: np.ndarray, decode: float) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the region that holds all crops of a decode."""
    top, left, bottom, right = 1 << 30, 1 << 30, 0, 0
    for crop in range(len(plan)):
        own = plan[crop]
        if own[DECODE] == decode:
            top, left = min(top, int(own[TOP])), min(left, int(own[LEFT]))
            bottom, right = max(bottom, int(own[TOP] + own[TALL])), max(right, int(own[LEFT] + own[WIDE]))
    return top, left, bottom, right


@compiled(nogil=True, error_model="numpy")
def _decode_region(
    stored: np.ndarray,
    height: int,
    width: int,
    box: tuple[int, int, int, int],
    reduction: int,
    apart: bool,
    image: np.ndarray,
    cutting: tuple[Any, ...],
) -> tuple[int, bool]:
    """Decode what crops within `box` need of a JPEG of `height` × `width`; return a problem, or OK, and whether the
    samples in `image` are planes.

    `box` is (top, left, bottom, right). `region` takes where the decoded pixels begin in the JPEG, and their numbers of
    rows and columns once reduced. `apart` wishes for planes.
    """
    tiles, header, region = cutting
    if not parse_header(stored, header) or header[HEIGHT] != height or header[WIDTH] != width:
        return BAD_HEADER, False
    top, left, bottom, right = box
    # Narrower ones, libjpeg upsamples in another way, and planes of one row may not fit into the room for its pixels.
    apart = apart and reduction == 1 and header[HALVED] != 0 and height > 1 and width > 4
    address, used = np.uint64(address_of(stored)), np.uint64(len(stored))
    # A pixel of the reduced image, which upsampling may look at, is as many of the whole.
    cut = cut_tiles(stored, header, top, left, bottom - top, right - left, tiles, region, max(MARGIN, reduction))
    if cut < 0:
        return BAD_JPEG, False
    if cut > 0:
        address, used = np.uint64(address_of(tiles)), np.uint64(cut)
    else:
        region[0], region[1], region[2], region[3] = 0, 0, height, width
    region[2], region[3] = -(-region[2] // reduction), -(-region[3] // reduction)
    if apart:
        failed = decode_planes(address, used, region[2], region[3], image)
    else:
        failed = decode_jpeg(address, used, region[2], region[3], image)
    return (BAD_JPEG if failed != 0 else OK), apart


@compiled(nogil=True, error_model="numpy")
def _make_crop(
    own: np.ndarray,
    pixels: np.ndarray,
    apart: bool,
    region: np.ndarray,
    reduction: int,
    kind: int,
    place: np.ndarray,
    scratch: tuple[Any, ...],
) -> None:
    """Resize a planned crop from the decoded `region` of its JPEG into `place` (uint8 [R, R, 3])."""
    (row, weights, spans), planewise, converting = scratch
    top, left, h, w = int(own[TOP]) - region[0], int(own[LEFT]) - region[1], int(own[TALL]), int(own[WIDE])
    y, x, box_h, box_w, flip = own[Y], own[X], own[BOX_HEIGHT], own[BOX_WIDTH], own[FLIP] != 0.0
    rows, columns = region[2], region[3]
    if reduction > 1:
        part = 1.0 / reduction
        top, left, h, w, y, x, box_h, box_w = scaled_box(top + y, left + x, box_h, box_w, part, part, rows, columns)
    if apart:
        if clamped_excess(pixels, rows, columns, top, left, h, w) <= MOST_EXCESS:
            resize_planes(
                pixels, rows, columns, top, left, h, w, y, x, box_h, box_w, flip, kind, place, weights, spans, planewise
            )
            return
        converted, sums, lines = converting
        convert_planes(pixels, rows, columns, top, left, h, w, converted, sums, lines)
        pixels, columns, top, left = converted, w, 0, 0
    resize_crop(pixels, columns, top, left, h, w, y, x, box_h, box_w, flip, kind, place, row, weights, spans)


@compiled(nogil=True, error_model="numpy")
def decode_samples(
    samples: tuple[Any, ...],
    seed: int,
    epoch: int,
    views: tuple[Any, ...],
    target: np.ndarray,
    first: int,
    count: int,
    scratch: tuple[Any, ...],
) -> tuple[int, int]:
    """Decode, crop, resize and flip samples into `target`, where they are number `first` and following of `count`.

    `samples`: where each one's bytes lie in memory, uint64 [n], and how many there are, int64 [n]; modes, uint8 [n];
    heights and widths, int64 [n]; the numbers that key the random draw, int64 [n]. `views`: the `crop_parameters` of
    each, float64 [V, 8], all of random crops or one of a centre crop, and their sides R in pixels, int64 [V].
    `target` (uint8, flat) takes one view after the other, each [count, R, R, 3]. `scratch` is the `arguments` of a
    `Scratch`. Returns (position, problem) of the first sample that failed, or (−1, OK).
    """
    # Plain tuples: numba looks at the fields of a named one in Python at each call, and holds the GIL meanwhile.
    addresses, sizes, stored_as, heights, widths, keys = samples
    parameters, sides = views
    image, state, plan, cutting, making = scratch
    _, header, region = cutting
    number, drawn = len(sides), parameters[0, IS_RANDOM] != 0.0
    i = 0
    while i < len(keys):
        # Repetitions of a sample in a row are made of one decode too.
        crops = _crops_of_one_decode(addresses, i, number, len(plan))
        height, width = heights[i], widths[i]
        data = carray(as_pointer(np.uintp(addresses[i])), sizes[i])  # type: ignore[call-arg]
        coded = stored_as[i] == MODE_JPG
        sound, whole, level, rows, columns = True, data, data[:0], 0, 0
        if coded and drawn:
            sound, whole, level, rows, columns = split_level(data, header, height, width)
        if not sound:
            return i, BAD_LEVEL
        sample = height, width, rows, columns, coded
        _plan_crops(plan[:crops], sample, views, seed, epoch, keys[i:], first + i, count, state)
        for leader in range(crops):
            decode = plan[leader, DECODE]
            if decode == 0.0:
                continue
            reduction, pixels, apart = int(abs(decode)), data, False
            region[0], region[1], region[2], region[3] = 0, 0, height, width
            if coded:
                stored, tall, wide = (whole, height, width) if decode > 0.0 else (level, rows, columns)
                box = _region_of(plan[leader:crops], decode)
                problem, apart = _decode_region(stored, tall, wide, box, reduction, drawn, image, cutting)
                if problem != OK:
                    return i, problem
                pixels = image
            for crop in range(leader, crops):
                own, view = plan[crop], crop % number
                if own[DECODE] != decode:
                    continue
                own[DECODE] = 0.0
                size, start = sides[view], int(own[START])
                place = target[start : start + 3 * size * size].reshape(size, size, 3)
                kind = int(parameters[view, FILTER])
                _make_crop(own, pixels, apart, region, reduction, kind, place, making)
        i += crops // number
    return -1, OK
