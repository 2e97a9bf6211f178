"""Crops, random numbers and resampling against torchvision and published reference values."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as transforms

from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels import decode, jpeg
from ffcv_train.data.kernels.crops import RandomResizedCrop, crop_parameters, random_crop
from ffcv_train.data.kernels.random import next_u64, seed_stream, uniform
from ffcv_train.data.kernels.resample import FILTERS, resize_crop
from tests.support.photographs import Samples, decode_rgb

PHOTOGRAPH = load_sample_images().images[0][:, :, ::-1].copy()
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def test_generator_gives_the_published_splitmix64_sequence() -> None:
    # Seed 1234567: Rosetta Code and Vigna's splitmix64.c agree on these.
    state = np.array([1234567], np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(next_u64(state)) for _ in range(5)] == expected


def test_streams_of_neighbouring_keys_are_uniform_and_uncorrelated() -> None:
    state = np.zeros(1, np.uint64)

    def first(seed: int, epoch: int, sample: int) -> float:
        seed_stream(state, seed, epoch, sample)
        return uniform(state, 0.0, 1.0)

    for vary in (lambda i: (i, 0, 0), lambda i: (0, i, 0), lambda i: (0, 0, i), lambda i: (i, i, i)):
        numbers = np.array([first(*vary(i)) for i in range(4000)])
        assert abs(numbers.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(4000)
        assert np.histogram(numbers, 10, (0, 1))[0].min() > 300
    assert len({first(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512


def draw(height: int, width: int, crop: RandomResizedCrop, count: int) -> np.ndarray:
    state, parameters = np.zeros(1, np.uint64), crop_parameters(crop)
    rows = []
    for i in range(count):
        seed_stream(state, 3, 1, i)
        rows.append(random_crop(height, width, parameters, state))
    return np.array(rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0.2, 1))
def test_crops_lie_in_the_image(height: int, width: int, scale: float, ratio: float) -> None:
    rows = draw(height, width, RandomResizedCrop((scale, 1.0), (ratio, 1 / ratio)), 20)
    top, left, h, w = rows[:, :4].T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 600)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    rows = draw(*shape, RandomResizedCrop(), 3000)
    torch.manual_seed(0)
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    params = TorchvisionCrop(224).make_params
    reference = np.array(
        [[p["top"], p["left"], p["height"], p["width"]] for p in (params([image]) for _ in range(3000))]
    )
    for ours, theirs in zip(rows[:, :4].T, reference.T, strict=True):
        spread = np.sqrt(2 / 3000) * max(theirs.std(), 1e-9)
        assert abs(ours.mean() - theirs.mean()) < 4.5 * spread + 1e-9
        assert abs(ours.std() - theirs.std()) < 0.08 * theirs.std() + 1e-9
    assert abs(rows[:, 4].mean() - 0.5) < 0.04


def resized(image: np.ndarray, box: tuple[int, int, int, int], size: int, kind: str, flip: bool = False) -> np.ndarray:
    target = np.empty((size, size, 3), np.uint8)
    scratch = decode.Scratch(1, 1, max(image.shape), size)
    flat = np.ascontiguousarray(image).reshape(-1)
    whole = (0.0, 0.0, float(box[2]), float(box[3]))
    work = (scratch.row, scratch.weights, scratch.spans)
    resize_crop(flat, image.shape[1], *box, *whole, flip, FILTERS[kind], target, *work)
    return target


@pytest.mark.parametrize("size", [16, 33, 160, 224])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_resampling_equals_torchvisions_antialiased_resize(photo_samples: Samples, size: int, kind: str) -> None:
    generator = np.random.default_rng(size)
    for image in photo_samples.images[:12]:
        h, w = (int(generator.integers(1, side + 1)) for side in image.shape[:2])
        top, left = (
            int(generator.integers(0, image.shape[0] - h + 1)),
            int(generator.integers(0, image.shape[1] - w + 1)),
        )
        ours = resized(image, (top, left, h, w), size, kind)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        # Of uint8, torchvision rounds and clips between its two passes, too.
        where = (top, left, h, w, [size, size], MODES[kind])
        reference = transforms.resized_crop(tensor.float(), *where, antialias=True).clamp(0, 255)
        assert np.abs(ours - reference.permute(1, 2, 0).numpy()).max() < 0.505


def test_flip_mirrors_and_identity_copies(photo_samples: Samples) -> None:
    image = np.ascontiguousarray(photo_samples.images[0][:40, :40])
    box = (0, 0, 40, 40)
    assert np.array_equal(resized(image, box, 40, "bilinear"), image)
    assert np.array_equal(resized(image, box, 40, "bilinear", flip=True), image[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 70), st.sampled_from(["bilinear", "bicubic"]))
def test_a_constant_image_stays_constant_at_any_size(height: int, width: int, size: int, kind: str) -> None:
    image = np.full((height, width, 3), (7, 130, 255), np.uint8)
    assert (resized(image, (0, 0, height, width), size, kind) == image[0, 0]).all()


SAMPLINGS = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:0": 0x121111, "4:4:4": 0x111111, "4:1:1": 0x411111}
MCU = {"4:2:0": (16, 16), "4:2:2": (8, 16), "4:4:0": (16, 8), "4:4:4": (8, 8), "4:1:1": (8, 32)}


def encoded(image: np.ndarray, interval: int, sampling: str = "4:2:0", grey: bool = False) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    return cv2.imencode(".jpg", image[:, :, 0] if grey else image, options)[1].reshape(-1)


def parsed(data: np.ndarray) -> np.ndarray:
    header = np.zeros(jpeg.HEADER_FIELDS, np.int64)
    assert jpeg.parse_header(data, header)
    return header


def decode_crop(data: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, int]:
    """The pixels of a crop by way of its tiles, and how many bytes the tiles had (0: decoded whole)."""
    header, output, region = parsed(data), np.zeros(len(data), np.uint8), np.zeros(4, np.int64)
    size = jpeg.cut_tiles(data, header, *box, output, region)
    assert size >= 0
    top, left, h, w = box
    if size == 0:
        return decode_rgb(data)[top : top + h, left : left + w], 0
    tiles = decode_rgb(output[:size])
    assert tiles.shape[:2] == (region[2], region[3])
    return tiles[top - region[0] :, left - region[1] :][:h, :w], size


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(SAMPLINGS)), st.booleans())
def test_tiles_decode_to_the_same_pixels_as_the_whole(data: st.DataObject, sampling: str, grey: bool) -> None:
    height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    photograph = PHOTOGRAPH[60 : 60 + height, 100 : 100 + width]
    mcu_width = 8 if grey else MCU[sampling][1]
    interval = data.draw(st.sampled_from(divisors(-(-width // mcu_width))))
    jpg = encoded(photograph, interval, sampling, grey)
    header = parsed(jpg)
    assert (header[jpeg.HEIGHT], header[jpeg.WIDTH], header[jpeg.INTERVAL]) == (height, width, interval)
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    pixels, _ = decode_crop(jpg, (top, left, h, w))
    assert np.array_equal(pixels, decode_rgb(jpg)[top : top + h, left : left + w])


def test_a_small_crop_takes_few_bytes_at_every_border() -> None:
    jpg = encoded(PHOTOGRAPH, 4)
    height, width = PHOTOGRAPH.shape[:2]
    for top in (0, 1, height // 2, height - 64):
        for left in (0, 1, width // 2, width - 64):
            pixels, size = decode_crop(jpg, (top, left, 64, 64))
            assert np.array_equal(pixels, decode_rgb(jpg)[top : top + 64, left : left + 64])
            assert 0 < size < 0.35 * len(jpg)


def test_files_without_a_grid_are_decoded_whole() -> None:
    progressive = cv2.imencode(".jpg", PHOTOGRAPH, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[
        1
    ].reshape(-1)
    per_row = -(-PHOTOGRAPH.shape[1] // 16)
    for jpg in (
        encoded(PHOTOGRAPH, 0),
        progressive,
        encoded(PHOTOGRAPH, per_row - 1),
        encoded(PHOTOGRAPH, 2 * per_row),
    ):
        pixels, size = decode_crop(jpg, (10, 10, 30, 30))
        assert size == 0 and pixels.shape == (30, 30, 3)


def test_headers_are_read_as_opencv_reads_them_and_anything_is_survived(jpg_beton: Path) -> None:
    beton = open_beton(jpg_beton)
    content = np.fromfile(jpg_beton, np.uint8)
    generator = np.random.default_rng(0)
    header = np.zeros(jpeg.HEADER_FIELDS, np.int64)
    for ptr, size, h, w in zip(beton.ptrs, beton.sizes, beton.heights, beton.widths, strict=True):
        data = content[ptr : ptr + size]
        found = parsed(data)
        assert (found[jpeg.HEIGHT], found[jpeg.WIDTH]) == (h, w) == decode_rgb(data).shape[:2]
        for length in generator.integers(0, 700, 20):
            assert jpeg.parse_header(data[:length].copy(), header) == (length >= found[jpeg.ENTROPY])
            mutated = data[:700].copy()
            mutated[generator.integers(0, len(mutated), 8)] = generator.integers(0, 256, 8)
            jpeg.parse_header(mutated, header)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_tiles_are_cut_or_refused_within_bounds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    jpg = encoded(PHOTOGRAPH[:200, :240], 5)
    guard, header, region = 64, np.zeros(jpeg.HEADER_FIELDS, np.int64), np.zeros(4, np.int64)
    refused = 0
    for _ in range(500):
        data = jpg[: generator.integers(2, len(jpg) + 1)].copy() if generator.random() < 0.3 else jpg.copy()
        places = generator.integers(0, len(data), generator.integers(1, 6))
        data[places] = generator.choice([0, 0xFF, 0xD0, 0xD7, 0xD9, 0xDA, 1], len(places))
        output = np.full(len(data) + guard, 77, np.uint8)
        # Half of the mutants keep a sound header, so that their markers are reached.
        if generator.random() < 0.5:
            data[: min(len(data), 640)] = jpg[: min(len(data), 640)]
        if not jpeg.parse_header(data, header) or header[jpeg.HEIGHT] != 200 or header[jpeg.WIDTH] != 240:
            refused += 1
            continue
        size = jpeg.cut_tiles(data, header, 90, 30, 50, 60, output[: len(data)], region)
        assert size <= len(data)
        assert (output[len(data) :] == 77).all()
        refused += size < 0
    assert 50 < refused < 500


def loaded(jpgs: list[np.ndarray], crop: RandomResizedCrop, size: int) -> np.ndarray:
    """What the loader's inner loop makes of JPEGs."""
    shapes = np.array([decode_rgb(jpg).shape[:2] for jpg in jpgs])
    heights, widths = shapes[:, 0].copy(), shapes[:, 1].copy()
    sizes = np.array([len(jpg) for jpg in jpgs])
    scratch = decode.Scratch(int((heights * widths * 3).max()), int(sizes.max()), int(shapes.max()), size)
    target = np.empty((len(jpgs), size, size, 3), np.uint8)
    addresses = np.array([jpg.ctypes.data for jpg in jpgs], np.uint64)
    modes, indices = np.zeros(len(jpgs), np.uint8), np.arange(len(jpgs))
    found = decode.decode_samples(
        (addresses, sizes, modes, heights, widths, indices),
        0,
        0,
        (crop_parameters(crop)[None], np.array([size])),
        target.reshape(-1),
        0,
        len(jpgs),
        scratch.arguments,
    )
    assert found == (-1, 0)
    return target


def crop_boxes(jpgs: list[np.ndarray], crop: RandomResizedCrop) -> list[tuple[int, int, int, int]]:
    state, boxes = np.zeros(1, np.uint64), []
    for index, jpg in enumerate(jpgs):
        seed_stream(state, 0, 0, index)
        boxes.append(random_crop(*decode_rgb(jpg).shape[:2], crop_parameters(crop), state)[:4])
    return boxes


@pytest.mark.filterwarnings("ignore:The image decoding")  # torchvision's, of decode_jpeg: still the reference
@pytest.mark.parametrize("size", [160, 224])
@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
def test_the_whole_path_equals_torchvisions_on_the_same_box(size: int, sampling: str) -> None:
    # Of 4:2:0, colours are clamped after resizing: pale photographs have none to clamp.
    photograph = PHOTOGRAPH // 2 + 64 if sampling == "4:2:0" else PHOTOGRAPH
    photographs = [photograph, photograph[:, ::-1].copy(), photograph[100:301, 33:500].copy()]
    across = MCU[sampling][1]
    intervals = [max(d for d in divisors(-(-photo.shape[1] // across)) if d <= 5) for photo in photographs]
    jpgs = [encoded(p, interval, sampling) for p in photographs for interval in (0, *intervals[:1])]
    crop = RandomResizedCrop(flip=0.0)
    for image, jpg, box in zip(loaded(jpgs, crop, size), jpgs, crop_boxes(jpgs, crop), strict=True):
        whole = torchvision.io.decode_jpeg(torch.from_numpy(jpg))
        reference = transforms.resized_crop(whole, *box, [size, size], antialias=True).permute(1, 2, 0).numpy()
        difference = np.abs(image.astype(int) - reference.astype(int))
        assert difference.max() <= 2
        assert difference.mean() < 0.4


def test_reduced_decoding_stays_near_the_accurate_one() -> None:
    jpgs = [encoded(PHOTOGRAPH, 4), encoded(PHOTOGRAPH, 0)]
    plain = RandomResizedCrop((0.9, 1.0), flip=0.0)
    reduced = RandomResizedCrop((0.9, 1.0), flip=0.0, dct_scaling=True)
    for size, differs in ((64, True), (96, True), (300, False)):
        a, b = loaded(jpgs, plain, size).astype(int), loaded(jpgs, reduced, size).astype(int)
        assert (np.abs(a - b).mean() > 0) == differs
        assert np.abs(a - b).mean() < 2.5  # an edge that moved by a reduced pixel was 5 and more
        assert abs((a - b).mean()) < 0.1
