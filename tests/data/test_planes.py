"""Crops made of a JPEG's planes: against Pillow's resizing of upsampled planes, and against libjpeg's own pixels."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from ffcv_train.data.kernels import chroma, jpeg
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop, crop_parameters, random_crop
from ffcv_train.data.kernels.decode import MOST_EXCESS, Scratch, decode_samples
from ffcv_train.data.kernels.planes import plane_scratch, resize_planes
from ffcv_train.data.kernels.random import seed_stream
from ffcv_train.data.kernels.resample import FILTERS, resize_crop, scratch_sizes
from ffcv_train.data.kernels.turbojpeg import decode_jpeg, decode_planes
from tests.support.photographs import decode_rgb

PHOTOGRAPHS = [image[:, :, ::-1].copy() for image in load_sample_images().images]
PALE = [image // 2 + 64 for image in PHOTOGRAPHS]
"""No pixel of these lies outside of the RGB cube, as JPEG too."""
SAMPLINGS = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:0": 0x121111, "4:4:4": 0x111111, "4:1:1": 0x411111}
Box = tuple[int, int, int, int]


def encoded(image: np.ndarray, interval: int = 0, sampling: str = "4:2:0", *others: int) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_RST_INTERVAL, interval, *others]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    return cv2.imencode(".jpg", image, options)[1].reshape(-1)


def planes_of(data: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = np.zeros(6 * ((height + 1) // 2) * ((width + 1) // 2) + 8, np.uint8)
    assert decode_planes(data.ctypes.data, len(data), height, width, planes) == 0
    return planes


def made(crop: RandomResizedCrop | CenterCrop, data: np.ndarray, size: int, n: int) -> np.ndarray:
    """What the loader's inner loop makes of crops 0 to n − 1 of a JPEG, each of a decode of its own."""
    height, width = jpeg.frame_size(data)
    scratch = Scratch(height * width * 3, len(data), max(height, width), size)
    target = np.zeros((n, size, size, 3), np.uint8)
    table = (np.full(n, data.ctypes.data, np.uint64), np.full(n, len(data)), np.zeros(n, np.uint8))
    sides, views = (np.full(n, height), np.full(n, width)), (crop_parameters(crop)[None], np.array([size]))
    found = decode_samples((*table, *sides, np.arange(n)), 0, 0, views, target.reshape(-1), 0, n, scratch.arguments)
    assert found == (-1, 0)
    return target


def from_pixels(crop: RandomResizedCrop, data: np.ndarray, size: int, n: int) -> tuple[np.ndarray, list[Box]]:
    """The same crops of libjpeg's RGB pixels, and where they lie."""
    image, state, parameters = decode_rgb(data), np.zeros(1, np.uint64), crop_parameters(crop)
    height, width = image.shape[:2]
    row, weights = scratch_sizes(max(height, width), size)
    scratch = (np.zeros(row, np.float32), np.empty(weights, np.float32), np.empty((2, size), np.int32))
    target, boxes = np.zeros((n, size, size, 3), np.uint8), []
    for key in range(n):
        seed_stream(state, 0, 0, key)
        *box, flip = random_crop(height, width, parameters, state)
        whole = (0.0, 0.0, float(box[2]), float(box[3]))
        kind = FILTERS[crop.interpolation]
        resize_crop(image.reshape(-1), width, *box, *whole, flip, kind, target[key], *scratch)
        boxes.append(tuple(box))
    return target, boxes


def upsampled(planes: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Y, Cb and Cr (float64 [H, W]) as T.871 and libjpeg's triangle filter say, without a rounding."""

    def doubled(samples: np.ndarray) -> np.ndarray:
        """Along the first axis."""
        padded = np.concatenate([samples[:1], samples, samples[-1:]])
        pairs = np.stack([0.75 * samples + 0.25 * padded[:-2], 0.75 * samples + 0.25 * padded[2:]], 1)
        return pairs.reshape(-1, *samples.shape[1:])

    tall, wide = (height + 1) // 2, (width + 1) // 2
    luma, *both = np.split(planes[: 6 * tall * wide].astype(float), [4 * tall * wide, 5 * tall * wide])
    small = [part.reshape(tall, wide) for part in both]
    large = [luma.reshape(2 * tall, 2 * wide)] + [doubled(doubled(part).T).T for part in small]
    return [part[:height, :width] for part in large]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(FILTERS)), st.booleans())
def test_equals_pillows_resizing_of_upsampled_planes(data: st.DataObject, interpolation: str, flip: bool) -> None:
    """Of noise, in any box of any crop; Pillow resizes floats in float64."""
    height, width = data.draw(st.integers(2, 90)), data.draw(st.integers(5, 90))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    y, x = data.draw(st.floats(0, 0.9)), data.draw(st.floats(0, 0.9))
    box_h, box_w = data.draw(st.floats(0.1, 1)) * (h - y), data.draw(st.floats(0.1, 1)) * (w - x)
    size = data.draw(st.integers(1, 41))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    planes = generator.integers(0, 256, 6 * ((height + 1) // 2) * ((width + 1) // 2) + 8).astype(np.uint8)

    _, weights = scratch_sizes(max(height, width), size)
    scratch = (np.empty(weights, np.float32), np.empty((2, size), np.int32), plane_scratch(max(height, width), size))
    found = np.empty((size, size, 3), np.uint8)
    kind = FILTERS[interpolation]
    resize_planes(planes, height, width, top, left, h, w, y, x, box_h, box_w, flip, kind, found, *scratch)
    how = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    luma, cb, cr = (
        np.asarray(
            Image.fromarray(part[top : top + h, left : left + w].astype(np.float32)).resize(
                (size, size), how, (x, y, x + box_w, y + box_h)
            ),
            float,
        )
        for part in upsampled(planes, height, width)
    )
    cb, cr = cb - 128, cr - 128
    green = luma - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587
    wanted = np.stack([luma + 1.402 * cr, green, luma + 1.772 * cb], 2).clip(0, 255)
    assert np.abs(found - (wanted[:, ::-1] if flip else wanted)).max() < 0.51


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_converted_planes_are_libjpegs_pixels(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(2, 120)), data.draw(st.integers(5, 120))
    noise = np.random.default_rng(height * 121 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    jpg = encoded(data.draw(st.sampled_from([noise, PHOTOGRAPHS[1][200 : 200 + height, 250 : 250 + width]])))
    pixels = np.empty((height, width, 3), np.uint8)
    assert decode_jpeg(jpg.ctypes.data, len(jpg), height, width, pixels.reshape(-1)) == 0
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    found = np.empty((h, w, 3), np.uint8)
    scratch = chroma.upsampling_scratch(max(h, w))
    chroma.convert_planes(planes_of(jpg, height, width), height, width, top, left, h, w, found.reshape(-1), *scratch)
    assert np.array_equal(found, pixels[top : top + h, left : left + w])


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize("size", [24, 97, 224])
def test_what_is_within_the_rgb_cube_differs_by_roundings(size: int, interpolation: str) -> None:
    """libjpeg rounds chroma, by half a level, and each colour: 1.772 / 2 + 1 / 2 at most; then each way rounds once.
    What Keys' filter adds to a rounding is the sum of its weights' sizes, 1.3 at most each way."""
    most = 0.886 + 0.5 if interpolation == "bilinear" else 1.3**2 * (0.886 + 0.5)
    crop = RandomResizedCrop(interpolation=interpolation)
    for image in PALE:
        jpg = encoded(image, 5)
        found, (expected, _) = made(crop, jpg, size, 12), from_pixels(crop, jpg, size, 12)
        apart = found.astype(int) - expected
        assert 0 < np.abs(apart).max() <= most + 1
        assert np.abs(apart).mean() < 0.5 and abs(apart.mean()) < 0.05


@pytest.mark.parametrize("size", [96, 224])
def test_photographs_differ_where_they_leave_the_rgb_cube(size: int) -> None:
    crop = RandomResizedCrop()
    for image in PHOTOGRAPHS:
        jpg = encoded(image, 5)
        found, (expected, boxes) = made(crop, jpg, size, 30), from_pixels(crop, jpg, size, 30)
        planes = planes_of(jpg, *image.shape[:2])
        changed = 0
        for one, other, box in zip(found, expected, boxes, strict=True):
            excess = chroma.clamped_excess(planes, *image.shape[:2], *box)
            apart = np.abs(one.astype(int) - other)
            assert np.array_equal(one, other) or excess <= MOST_EXCESS
            # Rounding, and no more than what lies outside; of this there is an estimate.
            assert apart.mean() < 0.35 + excess
            changed += not np.array_equal(one, other)
        assert changed > 5


def test_a_crop_of_colours_beyond_the_cube_is_that_of_the_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (150, 200, 3)).astype(np.uint8) * 255
    jpg, crop = encoded(noise, 2), RandomResizedCrop((0.2, 1.0))
    assert np.array_equal(made(crop, jpg, 64, 10), from_pixels(crop, jpg, 64, 10)[0])


def test_the_excess_is_the_mean_distance_from_the_rgb_cube() -> None:
    for image in (*PHOTOGRAPHS, *PALE):
        height, width = image.shape[:2]
        planes = planes_of(encoded(image), height, width)
        for top, left, h, w in ((0, 0, height, width), (101, 33, 250, 201)):
            luma, cb, cr = (part[top : top + h, left : left + w] for part in upsampled(planes, height, width))
            green = luma - (0.114 * 1.772 * (cb - 128) + 0.299 * 1.402 * (cr - 128)) / 0.587
            colours = np.stack([luma + 1.402 * (cr - 128), green, luma + 1.772 * (cb - 128)])
            wanted = np.abs(colours - colours.clip(0, 255)).max(0).mean()
            found = chroma.clamped_excess(planes, height, width, top, left, h, w)
            assert found == pytest.approx(wanted, rel=0.5, abs=0.01)  # an estimate


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(PHOTOGRAPHS + PALE))
def test_tiles_give_what_the_whole_gives(data: st.DataObject, photograph: np.ndarray) -> None:
    height, width = data.draw(st.integers(2, 200)), data.draw(st.integers(5, 200))
    image = photograph[60 : 60 + height, 100 : 100 + width]
    per_row = -(-width // 16)
    interval = data.draw(st.sampled_from([d for d in range(1, per_row + 1) if per_row % d == 0]))
    crop = RandomResizedCrop((0.02, 0.6), interpolation=data.draw(st.sampled_from(sorted(FILTERS))))
    size = data.draw(st.sampled_from([1, 7, 8, 33]))
    tiled, whole = (made(crop, encoded(image, each), size, 6) for each in (interval, 0))
    assert np.array_equal(tiled, whole)


def adobes(image: np.ndarray) -> np.ndarray:
    """A JPEG in 4:2:0 whose components are red, green and blue, as an Adobe marker says."""
    marker = b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, 0])
    data = encoded(image).tobytes()
    assert data[2:4] == b"\xff\xe0"  # JFIF, which would say that they are Y, Cb and Cr
    return np.frombuffer(data[:2] + marker + data[4 + int.from_bytes(data[4:6], "big") :], np.uint8)


def greys(image: np.ndarray) -> np.ndarray:
    return cv2.imencode(".jpg", image[:, :, 1])[1].reshape(-1)


def pillows(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", progressive=True, subsampling=2)
    return np.frombuffer(stream.getvalue(), np.uint8)


@pytest.mark.parametrize("kind", [*sorted(set(SAMPLINGS) - {"4:2:0"}), "red, green and blue", "grey", "progressive"])
def test_other_jpegs_are_decoded_to_pixels(kind: str) -> None:
    makers = {"red, green and blue": adobes, "grey": greys, "progressive": pillows}
    image, crop = PALE[0][:200, :240], RandomResizedCrop()
    jpg = makers[kind](image) if kind in makers else encoded(image, 0, kind)
    header = np.zeros(jpeg.HEADER_FIELDS, np.int64)
    assert jpeg.parse_header(jpg, header) and header[jpeg.HALVED] == 0
    assert np.array_equal(made(crop, jpg, 64, 8), from_pixels(crop, jpg, 64, 8)[0])


@pytest.mark.parametrize("shape", [(1, 40), (40, 4), (3, 3), (1, 1)])
def test_small_images_are_decoded_to_pixels(shape: tuple[int, int]) -> None:
    image, crop = np.ascontiguousarray(PALE[0][: shape[0], : shape[1]]), RandomResizedCrop()
    jpg = encoded(image)
    assert np.array_equal(made(crop, jpg, 16, 8), from_pixels(crop, jpg, 16, 8)[0])


def test_evaluation_and_reduced_decoding_take_pixels() -> None:
    image = PALE[0]
    jpg, (height, width) = encoded(image, 5), image.shape[:2]
    found = made(CenterCrop(1.0, rule="ffcv"), jpg, 100, 1)[0]
    row, weights = scratch_sizes(width, 100)
    scratch = (np.zeros(row, np.float32), np.empty(weights, np.float32), np.empty((2, 100), np.int32))
    side, expected = min(height, width), np.empty((100, 100, 3), np.uint8)
    box = ((height - side) // 2, (width - side) // 2, side, side, 0.0, 0.0, float(side), float(side))
    resize_crop(decode_rgb(jpg).reshape(-1), width, *box, False, FILTERS["bilinear"], expected, *scratch)
    assert np.array_equal(found, expected)
    crop = RandomResizedCrop((1.0, 1.0), (width / height, width / height), flip=0.0, dct_scaling=True)
    found = made(crop, jpg, 100, 1)[0]
    half = cv2.imdecode(jpg, cv2.IMREAD_REDUCED_COLOR_4)[:, :, ::-1]
    tall, wide = height / 4, width / 4
    box = (0, 0, *half.shape[:2], 0.0, 0.0, tall, wide)
    resize_crop(np.ascontiguousarray(half).reshape(-1), half.shape[1], *box, False, 0, expected, *scratch)
    assert np.array_equal(found, expected)
