"""The chroma planes of a JPEG in 4:2:0: where upsampling reads them, and the colours of pixels that need all of it.

libjpeg makes a pixel's chroma of ¾ of the sample that covers it and ¼ of the one beside it, on the pixel's side, each
way ("fancy upsampling"); beyond the plane's edge the sample at the edge stands in.
"""

import numpy as np

from ffcv_train.data.kernels.compile_cache import compiled

# ITU-T T.871, clause 7: what a level of Cb or Cr above 128 adds.
RED_OF_CR, GREEN_OF_CB, GREEN_OF_CR, BLUE_OF_CB = 1.402, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587, 1.772
_R_CR, _G_CB = np.float32(RED_OF_CR), np.float32(GREEN_OF_CB)
_G_CR, _B_CB = np.float32(GREEN_OF_CR), np.float32(BLUE_OF_CB)
_ZERO, _CENTRE, _WHITE = np.float32(0.0), np.float32(128.0), np.float32(255.0)
# libjpeg's numbers for the same, in units of 2^-16: these sums are exact in float32.
_FIXED_R_CR, _FIXED_G_CB = np.float32(91881.0), np.float32(-22554.0)
_FIXED_G_CR, _FIXED_B_CB = np.float32(-46802.0), np.float32(116130.0)
_HALF, _UNIT = np.float32(32768.0), np.float32(1.0 / 65536.0)

_EVERY = 8


@compiled(nogil=True, error_model="numpy")
def chroma_span(start: int, extent: int, samples: int) -> tuple[int, int]:
    """(first, count) of the `samples` in a row that upsampling reads for `extent` pixels from `start` on."""
    low = max(0, (start - 1) >> 1)
    return low, min(samples - 1, (start + extent) >> 1) - low + 1


@compiled(nogil=True, error_model="numpy")
def chroma_taps(
    pixel_first: np.ndarray,
    pixel_weights: np.ndarray,
    pixel_taps: int,
    start: int,
    low: int,
    source: int,
    first: np.ndarray,
    weights: np.ndarray,
) -> int:
    """Upsampling and then a filter of pixels from `start` on, as one filter of the `source` samples from `low` on.

    The filter of pixels is what `resample.taps_of` leaves, and so is that of samples: fill the first sample of every
    target pixel and its weights, and return how many weights each has.
    """
    taps = min(source, (pixel_taps >> 1) + 2)
    weights[: taps * len(pixel_first)] = 0.0
    for i in range(len(pixel_first)):
        pixel = start + pixel_first[i]
        first[i] = max(0, min(((pixel - 1) >> 1) - low, source - taps))
        own = weights[i * taps : (i + 1) * taps]
        for k in range(pixel_taps):
            weight = pixel_weights[i * pixel_taps + k]
            if weight != 0.0:  # a pixel that only fills up the taps may lie outside of what the samples cover
                near = ((pixel + k) >> 1) - low
                far = near + 1 if (pixel + k) & 1 else near - 1
                own[near - first[i]] += np.float32(0.75) * weight
                own[max(0, min(far, source - 1)) - first[i]] += np.float32(0.25) * weight
    return taps


@compiled(nogil=True, fastmath=True, error_model="numpy")
def clamped_excess(
    planes: np.ndarray, rows: int, columns: int, top: int, left: int, crop_height: int, crop_width: int
) -> float:
    """By how many levels the pixels of a crop lie outside of the RGB cube on average, in the channel farthest out.

    An estimate, from every sixteenth pixel without upsampling. `planes` are `turbojpeg.decode_planes`' of `rows` ×
    `columns` pixels.
    """
    chroma_rows, chroma_columns = (rows + 1) >> 1, (columns + 1) >> 1
    first, end = (left + 1) >> 1, (left + crop_width + 1) >> 1
    count = max(1, end - first)
    first = min(first, chroma_columns - count)
    total, lines = 0.0, 0
    for line in range(top, top + crop_height, _EVERY):
        luma = planes[2 * (line * chroma_columns + first) :][: 2 * count]
        blue = planes[(4 * chroma_rows + (line >> 1)) * chroma_columns + first :][:count]
        red = planes[(5 * chroma_rows + (line >> 1)) * chroma_columns + first :][:count]
        excess = _ZERO
        for k in range(count):
            y, cb, cr = np.float32(luma[2 * k]), np.float32(blue[k]) - _CENTRE, np.float32(red[k]) - _CENTRE
            r, g, b = _R_CR * cr, _G_CB * cb + _G_CR * cr, _B_CB * cb
            excess += max(y + max(r, max(g, b)) - _WHITE, _ZERO) + max(-y - min(r, min(g, b)), _ZERO)
        total += float(excess)
        lines += 1
    return total / (lines * count)


def upsampling_scratch(max_side: int) -> tuple[np.ndarray, np.ndarray]:
    """`sums` and `lines` of `convert_planes`, for crops up to this side."""
    samples = max_side // 2 + 2
    return np.empty(samples + 2, np.int16), np.empty((2, 2 * samples), np.uint8)


@compiled(nogil=True, error_model="numpy")
def convert_planes(
    planes: np.ndarray,
    rows: int,
    columns: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int,
    pixels: np.ndarray,
    sums: np.ndarray,
    lines: np.ndarray,
) -> None:
    """The RGB pixels of a crop, to the bit those of `turbojpeg.decode_jpeg`, to `pixels` (uint8, flat).

    `planes` are `turbojpeg.decode_planes`' of `rows` × `columns` pixels; `sums` and `lines` are `upsampling_scratch`.
    """
    chroma_rows, chroma_columns = (rows + 1) >> 1, (columns + 1) >> 1
    low, count = chroma_span(left, crop_width, chroma_columns)
    for line in range(top, top + crop_height):
        near = line >> 1
        far = min(near + 1, chroma_rows - 1) if line & 1 else max(near - 1, 0)
        for plane in range(2):
            start = (4 + plane) * chroma_rows * chroma_columns + low
            nearer = planes[start + near * chroma_columns :][:count]
            _upsample(nearer, planes[start + far * chroma_columns :][:count], sums, lines[plane])
        luma = planes[2 * line * chroma_columns + left :][:crop_width]
        _colour_line(luma, lines[0, left - 2 * low :], lines[1, left - 2 * low :], pixels)
        pixels = pixels[3 * crop_width :]


@compiled(nogil=True, error_model="numpy")
def _upsample(near: np.ndarray, far: np.ndarray, sums: np.ndarray, line: np.ndarray) -> None:
    """Two samples to `line` for each one of a row, of which `far` is the neighbour; libjpeg's roundings."""
    count = len(near)
    for k in range(count):
        sums[k + 1] = np.int16(3) * near[k] + far[k]
    sums[0], sums[count + 1] = sums[1], sums[count]
    for k in range(count):
        line[2 * k] = (3 * sums[k + 1] + sums[k] + 8) >> 4
        line[2 * k + 1] = (3 * sums[k + 1] + sums[k + 2] + 7) >> 4


@compiled(nogil=True, error_model="numpy")
def _colour_line(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, pixels: np.ndarray) -> None:
    for k in range(len(luma)):
        y, cb, cr = np.float32(luma[k]), np.float32(blue[k]) - _CENTRE, np.float32(red[k]) - _CENTRE
        r = y + np.floor((_FIXED_R_CR * cr + _HALF) * _UNIT)
        g = y + np.floor((_FIXED_G_CB * cb + _FIXED_G_CR * cr + _HALF) * _UNIT)
        b = y + np.floor((_FIXED_B_CB * cb + _HALF) * _UNIT)
        pixels[3 * k] = np.uint8(min(max(r, _ZERO), _WHITE))
        pixels[3 * k + 1] = np.uint8(min(max(g, _ZERO), _WHITE))
        pixels[3 * k + 2] = np.uint8(min(max(b, _ZERO), _WHITE))
