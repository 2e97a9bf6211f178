"""Antialiased resizing of a crop, as Pillow and torchvision (`antialias=True`) define it, in numba.

The filter (triangle for bilinear, Keys' cubic with a = −0.5 for bicubic) is stretched by the scale when shrinking, cut
off at the crop's edge and normalised. What becomes the target may be a box within the crop that falls between pixels,
as Pillow's `box`. Both passes work in float32 with one rounding at the end, which equals torchvision's result for
floats to half a level. Its result for uint8 is rounded and clamped between the passes as well: another level for
bilinear, up to 32 on hard edges for bicubic.

The vertical pass comes first, along contiguous rows, which LLVM vectorises by itself. The horizontal pass, four fifths
of the time when left to LLVM, is written in vectors of four: a pixel's three channels and one lane that is thrown away.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ffcv_train.data.kernels.compile_cache import compiled

BILINEAR = 0
BICUBIC = 1
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}

ROWS = 4
"""Output rows per horizontal pass: each has its own sum, so that no addition waits for the one before."""
LANES = 4


def scratch_sizes(max_side: int, max_resolution: int) -> tuple[int, int]:
    """Elements that `resize_crop` needs in `row` and in `weights` for sources and targets up to these sides."""
    rows = ROWS * (3 * max_side + LANES) + ROWS * (3 * max_resolution + LANES)
    return rows, 2 * (4 * max(max_side, max_resolution) + 5 * max_resolution)


@compiled(nogil=True, fastmath=True, error_model="numpy")
def _filter(kind: int, x: float) -> float:
    x = abs(x)
    if kind == 0:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@compiled(nogil=True, error_model="numpy")
def reach(kind: int, start: float, extent: float, source: int, target: int) -> tuple[int, int]:
    """(first, count) of the `source` pixels in a row that count where `extent` of them, from `start` on, are resized
    to `target`."""
    scale = extent / target
    support = max(scale, 1.0) * (1.0 if kind == 0 else 2.0)
    low = max(0, int(start + 0.5 * scale - support + 0.5))
    high = min(source, int(start + (target - 0.5) * scale + support + 0.5))
    return low, high - low


@compiled(nogil=True, fastmath=True, error_model="numpy")
def taps_of(
    kind: int, source: int, start: float, extent: float, target: int, first: np.ndarray, weights: np.ndarray
) -> int:
    """Fill the first source index of every target pixel and its weights, one pixel after the other; return how many
    weights each has. A loop of one length everywhere costs less than the zeros that some pixels get."""
    scale = extent / target
    stretch = max(scale, 1.0)
    support = stretch * (1.0 if kind == 0 else 2.0)
    taps = 0
    for i in range(target):
        center = start + (i + 0.5) * scale
        taps = max(taps, min(source, int(center + support + 0.5)) - max(0, int(center - support + 0.5)))
    position = 0
    for i in range(target):
        center = start + (i + 0.5) * scale
        low = max(0, int(center - support + 0.5))
        high = min(source, int(center + support + 0.5))
        total = 0.0
        for j in range(low, high):
            total += _filter(kind, (j - center + 0.5) / stretch)
        first[i] = min(low, source - taps)
        for j in range(first[i], first[i] + taps):
            weights[position] = _filter(kind, (j - center + 0.5) / stretch) / total if low <= j < high else 0.0
            position += 1
    return taps


@intrinsic
def _weighted_pixels(
    typing_context: Any, rows: Any, pitch: Any, start: Any, weights: Any, first: Any, taps: Any, output: Any, step: Any
) -> Any:
    """Of `ROWS` rows, `pitch` floats apart in `rows`, the weighted sum of `taps` pixels from `start`, plus 0.5.

    The weights stand in `weights` from `first`; the sums, of four floats, go to `output`, `step` floats apart. All
    indices count floats; `taps` is at least 1.
    """
    index = types.uintp
    signature = types.void(rows, index, index, weights, index, index, output, index)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        _, pitch, start, _, first, taps, _, step = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)
        lane = ir.IntType(32)
        sources = [builder.gep(pointer(0), [start])]
        targets = [pointer(6)]
        for _ in range(ROWS - 1):
            sources.append(builder.gep(sources[-1], [pitch]))
            targets.append(builder.gep(targets[-1], [step]))
        tap_weights = builder.gep(pointer(3), [first])

        before = builder.block
        loop, after = builder.append_basic_block("taps"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        tap = builder.phi(pitch.type)
        tap.add_incoming(ir.Constant(pitch.type, 0), before)
        sums = [builder.phi(vector) for _ in range(ROWS)]
        undefined = ir.Constant(vector, ir.Undefined)
        weight = builder.insert_element(undefined, builder.load(builder.gep(tap_weights, [tap])), lane(0))
        weight = builder.shuffle_vector(weight, undefined, ir.Constant(ir.VectorType(lane, LANES), [0] * LANES))
        offset = builder.mul(tap, ir.Constant(pitch.type, 3))
        next_tap = builder.add(tap, ir.Constant(pitch.type, 1))
        tap.add_incoming(next_tap, loop)
        totals = []
        for total, source in zip(sums, sources, strict=True):
            pixel = builder.load(builder.bitcast(builder.gep(source, [offset]), vector.as_pointer()), align=4)
            # "fast" lets LLVM fuse the two where the processor can.
            totals.append(builder.fadd(total, builder.fmul(weight, pixel, flags=("fast",)), flags=("fast",)))
            total.add_incoming(ir.Constant(vector, [0.5] * LANES), before)
            total.add_incoming(totals[-1], loop)
        builder.cbranch(builder.icmp_unsigned("<", next_tap, taps), loop, after)
        builder.position_at_end(after)
        for total, target in zip(totals, targets, strict=True):
            builder.store(total, builder.bitcast(target, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, codegen


weighted_pixels: Any = _weighted_pixels
"""In compiled code: see `_weighted_pixels`, with `ROWS` and `LANES`."""


@compiled(nogil=True, fastmath=True, error_model="numpy")
def weighted_rows(
    source: np.ndarray,
    start: np.uint64,
    stride: np.uint64,
    weights: np.ndarray,
    first: int,
    taps: int,
    line: np.ndarray,
) -> None:
    """The weighted sum of `taps` rows of `source` (uint8) from `start`, `stride` bytes apart, to `line` (float32)."""
    length = np.uint64(len(line))
    pixels = source[start : start + length]
    w1 = weights[first]
    for i in range(length):
        line[i] = w1 * pixels[i]
    # Two source rows per sweep halve the traffic of the sums.
    k = 1
    while k + 1 < taps:
        start += stride
        upper = source[start : start + length]
        start += stride
        lower = source[start : start + length]
        w1, w2 = weights[first + k], weights[first + k + 1]
        for i in range(length):
            line[i] += w1 * upper[i] + w2 * lower[i]
        k += 2
    if k < taps:
        start += stride
        pixels = source[start : start + length]
        w1 = weights[first + k]
        for i in range(length):
            line[i] += w1 * pixels[i]


@compiled(nogil=True, fastmath=True, error_model="numpy")
def resize_crop(
    source: np.ndarray,
    width: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int,
    y: float,
    x: float,
    box_height: float,
    box_width: float,
    flip: bool,
    kind: int,
    target: np.ndarray,
    row: np.ndarray,
    weights: np.ndarray,
    spans: np.ndarray,
) -> None:
    """Resize a box within a crop of `source` (uint8, flat RGB rows of `width` pixels) into `target` (uint8 [H, W, 3]).

    The box lies at (y, x) of the crop, in pixels; the whole crop is (0, 0, crop_height, crop_width). The filter sees
    the crop beyond the box, and nothing beyond the crop. `target` is contiguous; `flip` mirrors left to right. `row`
    and `weights` are float32 scratch of `scratch_sizes`, `row` finite; `spans` int32 [2, ≥ max(H, W)]. The crop must
    lie inside the source: nothing is checked here.
    """
    lines, size = target.shape[0], target.shape[1]
    half = len(weights) // 2
    down_first, across_first = spans[0, :lines], spans[1, :size]
    down_weights, across_weights = weights[:half], weights[half:]
    down_taps = taps_of(kind, crop_height, y, box_height, lines, down_first, down_weights)
    across_taps = np.uint64(taps_of(kind, crop_width, x, box_width, size, across_first, across_weights))
    stride = np.uint64(3 * width)
    length, pitch = 3 * crop_width, 3 * crop_width + LANES
    step = 3 * size + LANES
    output = row[ROWS * pitch :]
    pixels = target.reshape(lines * 3 * size)
    for upper in range(0, lines, ROWS):
        rows = min(ROWS, lines - upper)
        for k in range(rows):
            start = np.uint64(top + down_first[upper + k]) * stride + np.uint64(3 * left)
            line = row[k * pitch : k * pitch + length]
            weighted_rows(source, start, stride, down_weights, (upper + k) * down_taps, down_taps, line)
        # The fourth lane falls on the next pixel, which overwrites it.
        for column in range(size):
            pixel = size - 1 - column if flip else column
            first = np.uint64(pixel) * across_taps
            start = np.uint64(3 * across_first[pixel])
            place = output[3 * column :]
            weighted_pixels(row, np.uint64(pitch), start, across_weights, first, across_taps, place, np.uint64(step))
        for k in range(rows):
            sums = output[k * step : k * step + 3 * size]
            line_of_target = pixels[(upper + k) * 3 * size : (upper + k + 1) * 3 * size]
            for i in range(3 * size):
                line_of_target[i] = np.uint8(min(max(sums[i], np.float32(0)), np.float32(255)))


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """`image` (uint8 [H, W, 3]) at `height` × `width`, as torchvision's antialiased resize of floats, rounded."""
    rows, columns = image.shape[:2]
    side = max(height, width)
    row, weights = scratch_sizes(max(rows, columns), side)
    target = np.empty((height, width, 3), np.uint8)
    whole = (0.0, 0.0, float(rows), float(columns))
    scratch = (np.zeros(row, np.float32), np.empty(weights, np.float32), np.empty((2, side), np.int32))
    flat = np.ascontiguousarray(image).reshape(-1)
    resize_crop(flat, columns, 0, 0, rows, columns, *whole, False, FILTERS[interpolation], target, *scratch)
    return target
