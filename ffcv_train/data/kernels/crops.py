"""Where a crop lies: FFCV's and torchvision's definitions, as parameters of the compiled loop."""

import math
from dataclasses import dataclass

import numpy as np

from ffcv_train.data.kernels.compile_cache import compiled
from ffcv_train.data.kernels.random import seed_stream, uniform
from ffcv_train.data.kernels.resample import FILTERS, reach


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random crop of `scale` (share of the area) and `ratio` (width / height), flipped with probability `flip`.

    The draw is torchvision's and FFCV's: ten attempts, then the largest central crop within `ratio`. With `dct_scaling`
    a JPEG crop of at least twice the target is decoded at a reduced scale.

    Raises `ValueError` for bounds that do not fit.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bilinear"
    dct_scaling: bool = False

    def __post_init__(self) -> None:
        for name, high in (("scale", 1.0), ("ratio", math.inf)):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= high:
                most = " of at most 1" if high == 1.0 else ""
                raise ValueError(f"{name} must be two positive numbers{most}, the smaller first, not {bounds!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, so from 0 to 1, not {self.flip!r}")
        _check_interpolation(self.interpolation)


RULES = ("torchvision", "ffcv")
"""Whose central square a `CenterCrop` is"""


@dataclass(frozen=True)
class CenterCrop:
    """The central square, `ratio` of the shorter side.

    By the rule "torchvision", what `Resize(int(side / ratio))` and `CenterCrop(side)` leave, with the roundings of
    both: in general no whole pixels of the source, and the filter sees what lies beyond its edges. By "ffcv", what
    FFCV's `CenterCropRGBImageDecoder` cuts: whole pixels, and nothing beyond them. Raises `ValueError` for a ratio
    outside (0, 1], or another rule.
    """

    ratio: float = 224 / 256
    interpolation: str = "bilinear"
    rule: str = "torchvision"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, not {self.ratio!r}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be {' or '.join(RULES)}, not {self.rule!r}")
        _check_interpolation(self.interpolation)


def _check_interpolation(name: str) -> None:
    if name not in FILTERS:
        raise ValueError(f"interpolation must be {' or '.join(FILTERS)}, not {name!r}")


# Where `crop_parameters` puts what: of every crop, of random ones, of centre crops.
IS_RANDOM, FILTER = 0, 1
SCALE_LOW, SCALE_HIGH, LOG_RATIO_LOW, LOG_RATIO_HIGH, FLIP, DCT_SCALING = 2, 3, 4, 5, 6, 7
RATIO, RULE = 2, 3
_FFCV = RULES.index("ffcv")


def crop_parameters(crop: RandomResizedCrop | CenterCrop) -> np.ndarray:
    """The crop as the float64 vector that `decode_samples` takes."""
    vector = np.zeros(8)
    vector[FILTER] = FILTERS[crop.interpolation]
    if isinstance(crop, CenterCrop):
        vector[RATIO], vector[RULE] = crop.ratio, RULES.index(crop.rule)
        return vector
    vector[IS_RANDOM] = 1.0
    vector[SCALE_LOW], vector[SCALE_HIGH] = crop.scale
    vector[LOG_RATIO_LOW], vector[LOG_RATIO_HIGH] = (math.log(bound) for bound in crop.ratio)
    vector[FLIP], vector[DCT_SCALING] = crop.flip, crop.dct_scaling
    return vector


@compiled(nogil=True, error_model="numpy")
def random_crop(height: int, width: int, parameters: np.ndarray, state: np.ndarray) -> tuple[int, int, int, int, bool]:
    """(top, left, crop height, crop width, flip) drawn from the stream `state`."""
    flip = uniform(state, 0.0, 1.0) < parameters[FLIP]
    area = height * width
    low, high = parameters[LOG_RATIO_LOW], parameters[LOG_RATIO_HIGH]
    for _ in range(10):
        target = area * uniform(state, parameters[SCALE_LOW], parameters[SCALE_HIGH])
        aspect = math.exp(uniform(state, low, high))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            # The product can round up to the bound itself.
            top = min(int(uniform(state, 0.0, height - h + 1.0)), height - h)
            left = min(int(uniform(state, 0.0, width - w + 1.0)), width - w)
            return top, left, h, w, flip
    w, h = width, height
    if width / height < math.exp(low):
        h = min(height, max(1, round(width / math.exp(low))))
    elif width / height > math.exp(high):
        w = min(width, max(1, round(height * math.exp(high))))
    return (height - h) // 2, (width - w) // 2, h, w, flip


@compiled(nogil=True, error_model="numpy")
def draw_boxes(
    heights: np.ndarray, widths: np.ndarray, keys: np.ndarray, seed: int, epoch: int, parameters: np.ndarray
) -> np.ndarray:
    """Where `decode_samples` cuts its random views: int64 [n, V, 5], top, left, height, width, and 1 where flipped.

    `heights`, `widths` and `keys` (int64 [n]) are of the samples, `parameters` (float64 [V, 8]) of the views.
    """
    boxes = np.empty((len(keys), len(parameters), 5), np.int64)
    state = np.zeros(1, np.uint64)
    for i in range(len(keys)):
        for view in range(len(parameters)):
            seed_stream(state, seed, epoch, keys[i], view)
            top, left, h, w, flip = random_crop(heights[i], widths[i], parameters[view], state)
            box = boxes[i, view]
            box[0], box[1], box[2], box[3], box[4] = top, left, h, w, flip
    return boxes


@compiled(nogil=True, error_model="numpy")
def center_crop(
    height: int, width: int, parameters: np.ndarray, side: int
) -> tuple[int, int, int, int, float, float, float, float]:
    """(top, left, height, width) of the pixels that the central square of `side` × `side` is made from, and the
    square itself (y, x, height, width) within them, in pixels."""
    height, width = int(height), int(width)
    ratio = parameters[RATIO]
    if parameters[RULE] == _FFCV:
        crop = max(1, int(ratio * min(height, width)))
        return (height - crop) // 2, (width - crop) // 2, crop, crop, 0.0, 0.0, float(crop), float(crop)
    short = int(side / ratio + 1e-6)  # 224 / (224 / 232) is a hair less than 232
    tall, wide = short, short
    if height > width:
        tall = int(short * height / width)
    else:
        wide = int(short * width / height)
    y, x = round((tall - side) / 2.0) * height / tall, round((wide - side) / 2.0) * width / wide
    box_height, box_width = side * height / tall, side * width / wide
    top, rows = reach(int(parameters[FILTER]), y, box_height, height, side)
    left, columns = reach(int(parameters[FILTER]), x, box_width, width, side)
    return top, left, rows, columns, y - top, x - left, box_height, box_width


@compiled(nogil=True, error_model="numpy")
def scaled_box(
    top: float, left: float, height: float, width: float, down: float, across: float, rows: int, columns: int
) -> tuple[int, int, int, int, float, float, float, float]:
    """A box of an image in one of `rows` × `columns` that is `down` times as high and `across` times as wide.

    As `center_crop`: (top, left, height, width) of the whole pixels around it, then (y, x, height, width) within them.
    """
    y, x, box_height, box_width = top * down, left * across, height * down, width * across
    first, before = min(int(y), rows - 1), min(int(x), columns - 1)
    # Rounding must not add a row of which the box has nothing.
    last, after = min(rows, math.ceil(y + box_height - 1e-6)), min(columns, math.ceil(x + box_width - 1e-6))
    h, w = max(1, last - first), max(1, after - before)
    return first, before, h, w, y - first, x - before, box_height, box_width
