"""Vector code for `planes`: sums of which each lane is a row, and the way from them to rows of RGB pixels.

LLVM vectorises none of this by itself: rows of the target begin at rows of the source that no rule tells it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ffcv_train.data.kernels.chroma import BLUE_OF_CB, GREEN_OF_CB, GREEN_OF_CR, RED_OF_CR

LANES = 8

_I8, _I32, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_FLOATS, _BYTES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I8, LANES)


def _constant(number: float) -> Any:
    return ir.Constant(_FLOATS, [number] * LANES)


def _shuffled(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _spread(builder: Any, number: Any) -> Any:
    """A vector of which each lane is `number`."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    return _shuffled(builder, builder.insert_element(undefined, number, _I32(0)), undefined, [0] * LANES)


def _added(builder: Any, total: Any, weight: Any, values: Any) -> Any:
    # "fast" lets LLVM fuse the two where the processor can.
    return builder.fadd(total, builder.fmul(weight, values, flags=("fast",)), flags=("fast",))


def _loaded(builder: Any, pointer: Any, kind: Any, align: int) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)


def _stored(builder: Any, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of 8 vectors of 8 floats."""
    steps = (
        (1, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
        (2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
        (4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    )
    for apart, low, high in steps:
        mixed = list(rows)
        for k in range(LANES):
            if not k & apart:
                mixed[k] = _shuffled(builder, rows[k], rows[k + apart], low)
                mixed[k + apart] = _shuffled(builder, rows[k], rows[k + apart], high)
        rows = mixed
    # The first step leaves columns 0, 1 and 2, 3 in a pair, the second one tells the two of each apart.
    return [rows[j] for j in (0, 2, 1, 3, 4, 6, 5, 7)]


@intrinsic
def _weighted_columns(
    typing_context: Any,
    source: Any,
    corner: Any,
    stride: Any,
    first: Any,
    weights: Any,
    taps: Any,
    columns: Any,
    output: Any,
) -> Any:
    """Of `columns` columns of `source` (uint8) from `corner`, `LANES` weighted sums of `taps` samples each.

    Sum k begins at row first[k] (int32), rows being `stride` bytes apart; its weights are weights[k], weights[k +
    LANES] and so on. Sums of a column stand side by side in `output`. Columns are taken in groups of `LANES`: so many
    are read and written.
    """
    index = types.uintp
    signature = types.void(source, index, index, first, weights, index, index, output)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        _, corner, stride, _, _, taps, columns, _ = arguments
        number = stride.type
        samples, starts, tap_weights, target = pointer(0), pointer(3), pointer(4), pointer(7)
        lanes = []
        for k in range(LANES):
            row = builder.zext(builder.load(builder.gep(starts, [_I32(k)])), number)
            lanes.append(builder.gep(samples, [builder.add(corner, builder.mul(row, stride))]))
        zero, one, step = number(0), number(1), number(LANES)

        before = builder.block
        group = builder.append_basic_block("columns")
        loop = builder.append_basic_block("taps")
        summed, after = builder.append_basic_block("summed"), builder.append_basic_block("after")
        builder.branch(group)

        builder.position_at_end(group)
        column = builder.phi(number)
        column.add_incoming(zero, before)
        builder.branch(loop)

        builder.position_at_end(loop)
        tap, offset = builder.phi(number), builder.phi(number)
        sums = [builder.phi(_FLOATS) for _ in range(LANES)]
        tap.add_incoming(zero, group)
        offset.add_incoming(column, group)
        next_tap, next_offset = builder.add(tap, one), builder.add(offset, stride)
        of_tap = builder.gep(tap_weights, [builder.mul(tap, step)])
        totals = []
        for k, (total, lane) in enumerate(zip(sums, lanes, strict=True)):
            values = builder.uitofp(_loaded(builder, builder.gep(lane, [offset]), _BYTES, 1), _FLOATS)
            weight = _spread(builder, builder.load(builder.gep(of_tap, [_I32(k)])))
            totals.append(_added(builder, total, weight, values))
            total.add_incoming(_constant(0.0), group)
            total.add_incoming(totals[-1], loop)
        tap.add_incoming(next_tap, loop)
        offset.add_incoming(next_offset, loop)
        builder.cbranch(builder.icmp_unsigned("<", next_tap, taps), loop, summed)

        builder.position_at_end(summed)
        place = builder.gep(target, [builder.mul(column, step)])
        for j, sums_of_column in enumerate(_transposed(builder, totals)):
            _stored(builder, sums_of_column, builder.gep(place, [_I32(LANES * j)]), 4)
        next_column = builder.add(column, step)
        column.add_incoming(next_column, summed)
        builder.cbranch(builder.icmp_unsigned("<", next_column, columns), group, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _weighted_colours(
    typing_context: Any,
    luma: Any,
    luma_start: Any,
    luma_weights: Any,
    luma_first: Any,
    luma_taps: Any,
    blue: Any,
    red: Any,
    start: Any,
    weights: Any,
    first: Any,
    taps: Any,
    output: Any,
    place: Any,
) -> Any:
    """The colours of a pixel in each of `LANES` rows: red, green and blue, `LANES` bytes each, at `place` of `output`.

    `luma`, `blue` and `red` hold columns of `LANES` sums. Luma is the weighted sum of `luma_taps` columns from
    `luma_start`, weights from `luma_first`; Cb and Cr likewise, with the arguments that follow them.
    """
    index = types.uintp
    signature = types.void(
        luma, index, luma_weights, index, index, blue, red, index, weights, index, index, output, index
    )

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        def summed(planes: list[Any], start: Any, weights: Any, first: Any, taps: Any, origin: float) -> list[Any]:
            number = start.type
            step = number(LANES)
            sources = [builder.gep(plane, [builder.mul(start, step)]) for plane in planes]
            tap_weights = builder.gep(weights, [first])
            before = builder.block
            loop, after = builder.append_basic_block("taps"), builder.append_basic_block("summed")
            builder.branch(loop)
            builder.position_at_end(loop)
            tap = builder.phi(number)
            sums = [builder.phi(_FLOATS) for _ in planes]
            next_tap = builder.add(tap, number(1))
            tap.add_incoming(number(0), before)
            tap.add_incoming(next_tap, loop)
            weight = _spread(builder, builder.load(builder.gep(tap_weights, [tap])))
            offset = builder.mul(tap, step)
            totals = []
            for total, source in zip(sums, sources, strict=True):
                values = _loaded(builder, builder.gep(source, [offset]), _FLOATS, 4)
                totals.append(_added(builder, total, weight, values))
                total.add_incoming(_constant(origin), before)
                total.add_incoming(totals[-1], loop)
            builder.cbranch(builder.icmp_unsigned("<", next_tap, taps), loop, after)
            builder.position_at_end(after)
            return totals

        _, luma_start, _, luma_first, luma_taps, _, _, start, _, first, taps, _, place = arguments
        (light,) = summed([pointer(0)], luma_start, pointer(2), luma_first, luma_taps, 0.5)
        cb, cr = summed([pointer(5), pointer(6)], start, pointer(8), first, taps, -128.0)
        red = _added(builder, light, _constant(RED_OF_CR), cr)
        green = _added(builder, light, _constant(GREEN_OF_CB), cb)
        green = _added(builder, green, _constant(GREEN_OF_CR), cr)
        blue = _added(builder, light, _constant(BLUE_OF_CB), cb)
        target = builder.gep(pointer(11), [place])
        low, high = _constant(0.0), _constant(255.0)
        for channel, value in enumerate((red, green, blue)):
            value = builder.select(builder.fcmp_ordered(">", value, low), value, low)
            value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
            bytes_ = builder.trunc(builder.fptosi(value, ir.VectorType(_I32, LANES)), _BYTES)
            _stored(builder, bytes_, builder.gep(target, [_I32(LANES * channel)]), 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _rows_of_lanes(typing_context: Any, lanes: Any, first: Any, output: Any, start: Any, pitch: Any) -> Any:
    """8 × `LANES` bytes of `lanes` from `first`, transposed: `LANES` rows of 8 bytes in `output`, from `start` on,
    `pitch` apart."""
    index = types.uintp
    signature = types.void(lanes, index, output, index, index)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        _, first, _, start, pitch = arguments
        source, target = builder.gep(pointer(0), [first]), builder.gep(pointer(2), [start])
        pairs = [_loaded(builder, builder.gep(source, [_I32(16 * i)]), ir.VectorType(_I8, 16), 1) for i in range(4)]
        woven = [lane for k in range(8) for lane in (k, k + 8)]
        pairs = [_shuffled(builder, pair, pair, woven) for pair in pairs]
        for width in (16, 32):
            count = 128 // width
            kind = ir.VectorType(ir.IntType(width), count)
            pairs = [builder.bitcast(pair, kind) for pair in pairs]
            low = [lane for k in range(count // 2) for lane in (k, k + count)]
            high = [lane + count // 2 for lane in low]
            if width == 16:
                pairs = [_shuffled(builder, pairs[i], pairs[i + 1], order) for i in (0, 2) for order in (low, high)]
            else:
                pairs = [_shuffled(builder, pairs[i], pairs[i + 2], order) for i in (0, 1) for order in (low, high)]
        wide = ir.IntType(64)
        for k, pair in enumerate(pairs):
            halves = builder.bitcast(pair, ir.VectorType(wide, 2))
            for half in (0, 1):
                _stored(builder, builder.extract_element(halves, _I32(half)), target, 1)
                if 2 * k + half < LANES - 1:
                    target = builder.gep(target, [pitch])
        return context.get_dummy_value()

    return signature, codegen


weighted_columns: Any = _weighted_columns
weighted_colours: Any = _weighted_colours
rows_of_lanes: Any = _rows_of_lanes
