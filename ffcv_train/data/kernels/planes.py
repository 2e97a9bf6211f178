"""Antialiased resizing of a crop of a JPEG's planes, and its colours then: what `resample` makes of RGB pixels.

Conversion to RGB is linear but for its clamping, and so are the two steps around it: the upsampling of chroma before it
and resizing after it. They are therefore done in another order. Luma is resized by the filter of `resample`, the chroma
planes, which have half as many samples each way, by that filter composed with the upsampling, and colours are computed
of the result: no sample that the crop does not show. Chroma lies where it did. What differs are roundings, of which
only the last one is left, and pixels outside of the RGB cube, which are clamped after the filter instead of before. A
crop that has too many of them is for the other order.

Both passes work on `LANES` rows at once: the vertical one leaves them side by side, column by column, so that the
horizontal one adds vectors of which each lane is a row, and no lane is thrown away.
"""

from typing import Any

import numpy as np

from ffcv_train.data.kernels.chroma import chroma_span, chroma_taps
from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.lanes import LANES, rows_of_lanes, weighted_colours, weighted_columns
from ffcv_train.data.kernels.resample import taps_of


def plane_scratch(max_side: int, max_resolution: int) -> tuple[np.ndarray, ...]:
    """What `resize_planes` writes to meanwhile, for crops and targets up to these sides."""
    longest, samples = max(max_side, max_resolution), max_side // 2 + 2
    return (
        np.empty(LANES * (max_side + LANES + 2 * (samples + LANES)), np.float32),  # sums of columns
        np.empty((2, 2 * longest + 5 * max_resolution), np.float32),  # weights of chroma
        np.empty((2, max_resolution), np.int32),  # their first samples
        np.empty(LANES * (max_side + LANES), np.float32),  # weights, woven
        np.empty(LANES, np.int32),  # first rows
        np.empty(3 * LANES * max_resolution, np.uint8),  # colours of lanes
    )


@compiled(nogil=True, error_model="numpy")
def resize_planes(
    planes: np.ndarray,
    rows: int,
    columns: int,
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
    weights: np.ndarray,
    spans: np.ndarray,
    scratch: tuple[Any, ...],
) -> None:
    """`resample.resize_crop` of the planes that `turbojpeg.decode_planes` leaves of `rows` × `columns` pixels.

    `weights` and `spans` are as there, `scratch` is of a `PlaneScratch`. Up to 7 bytes behind the planes are read, and
    have no effect.
    """
    sums, chroma_weights, chroma_spans, woven, starts, lanes = scratch
    lines, size = target.shape[0], target.shape[1]
    chroma_rows, chroma_columns = (rows + 1) >> 1, (columns + 1) >> 1
    chroma_top, chroma_height = chroma_span(top, crop_height, chroma_rows)
    chroma_left, chroma_width = chroma_span(left, crop_width, chroma_columns)
    half = len(weights) // 2
    down, across, down_weights, across_weights = spans[0, :lines], spans[1, :size], weights[:half], weights[half:]
    down_taps = taps_of(kind, crop_height, y, box_height, lines, down, down_weights)
    across_taps = taps_of(kind, crop_width, x, box_width, size, across, across_weights)
    chroma_down, chroma_across = chroma_spans[0, :lines], chroma_spans[1, :size]
    chroma_down_weights, chroma_across_weights = chroma_weights[0], chroma_weights[1]
    chroma_down_taps = chroma_taps(
        down, down_weights, down_taps, top, chroma_top, chroma_height, chroma_down, chroma_down_weights
    )
    chroma_across_taps = chroma_taps(
        across, across_weights, across_taps, left, chroma_left, chroma_width, chroma_across, chroma_across_weights
    )
    luma, cb, cr = _parts(sums, LANES * (crop_width + LANES), LANES * (chroma_width + LANES))
    corner = 2 * top * chroma_columns + left
    cb_corner = (4 * chroma_rows + chroma_top) * chroma_columns + chroma_left
    cr_corner = cb_corner + chroma_rows * chroma_columns
    pixels, pitch = target.reshape(lines * 3 * size), 3 * size
    for upper in range(0, lines, LANES):
        _weave(down, down_weights, down_taps, upper, starts, woven)
        _sum_columns(planes, corner, 2 * chroma_columns, starts, woven, down_taps, crop_width, luma)
        _weave(chroma_down, chroma_down_weights, chroma_down_taps, upper, starts, woven)
        _sum_columns(planes, cb_corner, chroma_columns, starts, woven, chroma_down_taps, chroma_width, cb)
        _sum_columns(planes, cr_corner, chroma_columns, starts, woven, chroma_down_taps, chroma_width, cr)
        _colour_lanes(
            luma, across, across_weights, np.uint64(across_taps),
            cb, cr, chroma_across, chroma_across_weights, np.uint64(chroma_across_taps), flip, lanes,
        )  # fmt: skip
        _write_rows(lanes, pixels, upper * pitch, min(LANES, lines - upper), pitch)


@compiled(nogil=True, error_model="numpy")
def _parts(sums: np.ndarray, luma: int, chroma: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sums[:luma], sums[luma : luma + chroma], sums[luma + chroma : luma + 2 * chroma]


@compiled(nogil=True, error_model="numpy")
def _weave(
    first: np.ndarray, weights: np.ndarray, taps: int, upper: int, starts: np.ndarray, woven: np.ndarray
) -> None:
    """First indices and weights of `LANES` rows from `upper` on, tap by tap; those beyond the last row are the last."""
    for k in range(LANES):
        row = min(upper + k, len(first) - 1)
        starts[k] = first[row]
        for tap in range(taps):
            woven[tap * LANES + k] = weights[row * taps + tap]


@compiled(nogil=True, error_model="numpy")
def _sum_columns(
    planes: np.ndarray,
    corner: int,
    stride: int,
    starts: np.ndarray,
    woven: np.ndarray,
    taps: int,
    count: int,
    sums: np.ndarray,
) -> None:
    weighted_columns(
        planes, np.uint64(corner), np.uint64(stride), starts, woven, np.uint64(taps), np.uint64(count), sums
    )


@compiled(nogil=True, error_model="numpy")
def _colour_lanes(
    luma: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    taps: np.uint64,
    cb: np.ndarray,
    cr: np.ndarray,
    chroma_first: np.ndarray,
    chroma_weights: np.ndarray,
    chroma_taps: np.uint64,
    flip: bool,
    lanes: np.ndarray,
) -> None:
    size = len(first)
    for column in range(size):
        pixel = size - 1 - column if flip else column
        weighted_colours(
            luma, np.uint64(first[pixel]), weights, np.uint64(pixel) * taps, taps,
            cb, cr, np.uint64(chroma_first[pixel]), chroma_weights, np.uint64(pixel) * chroma_taps, chroma_taps,
            lanes, np.uint64(3 * LANES * column),
        )  # fmt: skip


@compiled(nogil=True, error_model="numpy")
def _write_rows(lanes: np.ndarray, pixels: np.ndarray, start: int, rows: int, pitch: int) -> None:
    """The first `rows` of the `LANES` rows, each of `pitch` bytes, to `pixels` from `start` on."""
    done = 0
    if rows == LANES:
        while done + 8 <= pitch:
            rows_of_lanes(lanes, np.uint64(LANES * done), pixels, np.uint64(start + done), np.uint64(pitch))
            done += 8
    for k in range(rows):
        for i in range(done, pitch):
            pixels[start + k * pitch + i] = lanes[LANES * i + k]
