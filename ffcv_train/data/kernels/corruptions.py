"""The 15 corruptions of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261), in five severities.

Each is a function of an image, float64 [S, S, 3] in [0, 1], a severity from 0 to 4, the constants of one of the two
benchmarks, and a generator of random numbers, drawn in the order of the authors' code; it returns the corrupted image,
which `corrupt` clips and, as they do, truncates to 8 bits. What they state in pixels is as many at any side, what they
state by the side (224 or 32) grows with it. Motion is ImageMagick's one-sided blur, which they call through Wand.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

from ffcv_train.data.kernels.compile_cache import compiled

SEVERITIES = 5
SMALL_SIDE = 64
"""Up to this side the constants are CIFAR-10-C's, above ImageNet-C's"""
_UP = 1e-12
"""Where what `apply` truncates was a whole number of 255ths, which division must not put below it"""
_FROST_SHARE = {"imagenet": 1.0, "cifar": 0.2}


@dataclass(frozen=True)
class Setting:
    """What a corruption is made with."""

    constants: str
    """imagenet or cifar"""
    severity: int
    """0 to 4"""
    random: np.random.RandomState
    frost: Sequence[np.ndarray] = ()
    """Photographs of frost, uint8 [H, W, 3] RGB each"""

    def of(self, imagenet: Sequence[Any], cifar: Sequence[Any]) -> Any:
        """The constant of this severity."""
        return (imagenet if self.constants == "imagenet" else cifar)[self.severity]


def corrupt(
    image: np.ndarray, name: str, severity: int, key: Sequence[int], frost: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """`image`, uint8 [S, S, 3] RGB, under corruption `name` of `CORRUPTIONS` at `severity` from 1 to 5, uint8.

    A function of its arguments: `key`, whole numbers such as (seed, sample), names the random draws, together with
    corruption and severity. `frost` photographs are needed for frost alone. Raises `ValueError` for another shape.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [S, S, 3], not {image.dtype} {list(image.shape)}")
    place = list(CORRUPTIONS).index(name)
    seeds = np.random.SeedSequence([*key, place, severity])
    random = np.random.RandomState(np.random.MT19937(seeds))
    constants = "cifar" if len(image) <= SMALL_SIDE else "imagenet"
    return apply(image, name, Setting(constants, severity - 1, random, frost))


def apply(image: np.ndarray, name: str, setting: Setting) -> np.ndarray:
    """`corrupt` with its constants and random numbers given."""
    changed = CORRUPTIONS[name](image / 255.0, setting)
    return (np.clip(changed, 0, 1) * 255).astype(np.uint8)


def read_frost(folder: Path) -> list[np.ndarray]:
    """The authors' first five photographs of frost in `folder`, those that they draw from: uint8 [H, W, 3] RGB each.

    Raises `OSError` where one is missing.
    """
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]


def _gaussian_noise(x: np.ndarray, setting: Setting) -> np.ndarray:
    scale = setting.of((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10))
    return x + setting.random.normal(size=x.shape, scale=scale)


def _shot_noise(x: np.ndarray, setting: Setting) -> np.ndarray:
    photons = setting.of((60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
    return setting.random.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, setting: Setting) -> np.ndarray:
    share = setting.of((0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07))
    changed = setting.random.random(x.shape) <= share
    salt = setting.random.random(x.shape) <= 0.5
    return np.where(changed, salt.astype(x.dtype), x)


def _defocus_blur(x: np.ndarray, setting: Setting) -> np.ndarray:
    radius, smoothing = setting.of(
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    )
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
    size = 3 if radius <= 8 else 5
    disk = cv2.GaussianBlur(disk / disk.sum(), ksize=(size, size), sigmaX=smoothing)
    return np.stack([cv2.filter2D(x[:, :, channel], -1, disk) for channel in range(3)], axis=2)


def _glass_blur(x: np.ndarray, setting: Setting) -> np.ndarray:
    sigma, reach, passes = setting.of(
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    )
    pixels = (_gaussian(x, sigma) * 255).astype(np.uint8)
    side = len(x) - 2 * reach
    for _ in range(passes):
        _scatter(pixels, setting.random.randint(-reach, reach, size=(side * side, 2)), reach)
    return _gaussian(pixels / 255.0, sigma)


@compiled()
def _scatter(pixels: np.ndarray, steps: np.ndarray, reach: int) -> None:
    # The authors' swap of two views copies one pixel to the other's place, and the published images have it so.
    count = 0
    for row in range(len(pixels) - reach, reach, -1):
        for column in range(len(pixels) - reach, reach, -1):
            dx, dy = steps[count]
            pixels[row, column] = pixels[row + dy, column + dx]
            count += 1


def _motion_blur(x: np.ndarray, setting: Setting) -> np.ndarray:
    radius, sigma = setting.of(
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    )
    # To 8 bits, as ImageMagick did; its 6.9.11 rounds down here (docs/suites.md).
    return np.rint(_moved(x, radius, sigma, setting.random.uniform(-45, 45)) * 255) / 255 + _UP


def _zoom_blur(x: np.ndarray, setting: Setting) -> np.ndarray:
    last, step = setting.of(
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    )
    factors = np.arange(1, last, step)
    x = x.astype(np.float32)
    total = np.zeros_like(x)
    for factor in factors:
        total += _zoomed(x, factor)
    return (x + total) / (len(factors) + 1)


def _snow(x: np.ndarray, setting: Setting) -> np.ndarray:
    mean, spread, zoom, threshold, radius, sigma, share = setting.of(
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    )
    x = x.astype(np.float32)
    layer = _zoomed(setting.random.normal(size=x.shape[:2], loc=mean, scale=spread)[..., None], zoom)
    layer[layer < threshold] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8) / 255.0
    flakes = np.rint(_moved(layer, radius, sigma, setting.random.uniform(-135, -45)) * 255) / 255
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5
    return share * x + (1 - share) * np.maximum(x, grey) + flakes + np.rot90(flakes, k=2)


def _frost(x: np.ndarray, setting: Setting) -> np.ndarray:
    own, ice = setting.of(
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    )
    photograph = setting.frost[setting.random.randint(5)]
    share = max(_FROST_SHARE[setting.constants], (len(x) + 1) / min(photograph.shape[:2]))
    if share != 1:
        photograph = cv2.resize(photograph, (0, 0), fx=share, fy=share)
    top, left = (setting.random.randint(0, length - len(x)) for length in photograph.shape[:2])
    return (own * np.rint(x * 255) + ice * photograph[top : top + len(x), left : left + len(x)]) / 255 + _UP


def _fog(x: np.ndarray, setting: Setting) -> np.ndarray:
    amount, decay = setting.of(
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    )
    largest = x.max()
    side = 1 << (len(x) - 1).bit_length()
    thickness = _plasma(side, decay, setting.random)[: len(x), : len(x), None]
    return (x + amount * thickness) * largest / (largest + amount)


def _brightness(x: np.ndarray, setting: Setting) -> np.ndarray:
    # HSV's value is the largest channel; at constant hue and saturation all channels scale with it.
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + setting.of((0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)), 1)
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def _contrast(x: np.ndarray, setting: Setting) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * setting.of((0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)) + mean


def _elastic_transform(x: np.ndarray, setting: Setting) -> np.ndarray:
    # The authors wrote 244 for 224, and the published images have it so.
    unit = len(x) / 224 * 244 if setting.constants == "imagenet" else len(x)
    shift, sigma, affine = (
        unit * share
        for share in setting.of(
            ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
            ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        )
    )
    side, random = len(x), setting.random
    x = x.astype(np.float32)
    centre, third = side // 2, side // 3
    corners = np.array([[third, third], [third, -third], [-third, -third]], np.float32) + np.float32(centre)
    moved = corners + random.uniform(-affine, affine, size=corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    smooth = _smoothing(side, sigma)
    dx, dy = (smooth @ random.uniform(-1, 1, size=(side, side)) @ smooth.T * shift for _ in range(2))
    rows, columns = np.mgrid[:side, :side]
    places = [rows + dy.astype(np.float32), columns + dx.astype(np.float32)]
    channels = [ndimage.map_coordinates(x[:, :, c], places, order=1, mode="reflect") for c in range(3)]
    return np.stack(channels, axis=2)


def _pixelate(x: np.ndarray, setting: Setting) -> np.ndarray:
    side = len(x)
    small = int(side * setting.of((0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)))
    image = _to_image(x).resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
    return _from_image(image)


def _jpeg_compression(x: np.ndarray, setting: Setting) -> np.ndarray:
    content = io.BytesIO()
    _to_image(x).save(content, "JPEG", quality=setting.of((25, 18, 15, 10, 7), (80, 65, 58, 50, 40)))
    return _from_image(Image.open(content))


def _to_image(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def _from_image(image: Image.Image) -> np.ndarray:
    return np.asarray(image) / 255 + _UP


def _gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


@functools.lru_cache(maxsize=2 * SEVERITIES)
def _smoothing(side: int, sigma: float) -> np.ndarray:
    """Float64 [side, side], what `ndimage.gaussian_filter(…, sigma, mode="reflect", truncate=3)` multiplies columns by.

    Its kernel of up to a thousand numbers takes as long at every pixel; reflected, they are a row of `side`.
    """
    return ndimage.gaussian_filter(np.eye(side), (sigma, 0), mode="reflect", truncate=3)


def _moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's MotionBlurImage of [S, S, C]: half a Gaussian along `angle` in degrees, edges repeated."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    side = len(x)
    padded = np.pad(x, ((width, width), (width, width), (0, 0)), mode="edge")
    total = np.zeros_like(x, dtype=np.float64)
    for number, weight in enumerate(weights):
        top, left = (width + int(np.ceil(number * part - 0.5)) for part in (down, right))
        total += weight * padded[top : top + side, left : left + side]
    return total


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of [S, S, C], `factor` times as large, cut to S."""
    side = len(x)
    inner = int(np.ceil(side / factor))
    start = (side - inner) // 2
    large = round(inner * factor)
    trim = (large - side) // 2
    return _enlarged(x[start : start + inner, start : start + inner], large, trim, side)


@compiled(nogil=True)
def _enlarged(x: np.ndarray, large: int, first: int, side: int) -> np.ndarray:
    """Rows and columns `first` to `first + side` of `ndimage.zoom` of [s, s, C] to `large` pixels, order=1, to the bit.

    That computes all of it, and eight products a number.
    """
    ratio = (len(x) - 1) / (large - 1)
    places = np.arange(first, first + side) * ratio
    floors = places.astype(np.int64)
    after = np.minimum(floors + 1, len(x) - 1)
    near = 1 - (places - floors)
    far = 1 - near
    found = np.zeros((side, side, x.shape[2]), x.dtype)
    for row in range(side):
        if places[row] > len(x) - 1:  # by a rounding: outside, and 0 to scipy
            continue
        for column in range(side):
            if places[column] > len(x) - 1:
                continue
            for c in range(x.shape[2]):
                upper = x[floors[row], floors[column], c] * near[row] * near[column]
                upper += x[floors[row], after[column], c] * near[row] * far[column]
                lower = x[after[row], floors[column], c] * far[row] * near[column]
                found[row, column, c] = upper + lower + x[after[row], after[column], c] * far[row] * far[column]
    return found


def _plasma(side: int, decay: float, random: np.random.RandomState) -> np.ndarray:
    """A height map by the diamond-square algorithm, [side, side] in [0, 1]; `side` is a power of two."""
    heights = np.zeros((side, side))
    step, wobble = side, 100.0

    def mean_of(four: np.ndarray) -> np.ndarray:
        return four / 4 + wobble * random.uniform(-wobble, wobble, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean_of(pairs + np.roll(pairs, -1, axis=1))
        centres, corners = heights[half::step, half::step], heights[::step, ::step]
        beside = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = mean_of(beside)
        beside = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = mean_of(beside)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


CORRUPTIONS: dict[str, Callable[[np.ndarray, Setting], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""By their names in the benchmarks' folders; the place of a name is part of its random draws"""
