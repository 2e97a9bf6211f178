"""Crops, random numbers and resampling against torchvision and published reference values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Samples, decode_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as transforms

from ffcv_train.data import decoders, jpeg
from ffcv_train.data.beton import open_beton
from ffcv_train.data.random import next_u64, seed_stream, uniform
from ffcv_train.data.resample import FILTERS, resize_crop

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


def draw(height: int, width: int, crop: decoders.RandomResizedCrop, count: int) -> np.ndarray:
    state, parameters = np.zeros(1, np.uint64), decoders.crop_parameters(crop)
    rows = []
    for i in range(count):
        seed_stream(state, 3, 1, i)
        rows.append(decoders.random_crop(height, width, parameters, state))
    return np.array(rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0.2, 1))
def test_crops_lie_in_the_image(height: int, width: int, scale: float, ratio: float) -> None:
    rows = draw(height, width, decoders.RandomResizedCrop((scale, 1.0), (ratio, 1 / ratio)), 20)
    top, left, h, w = rows[:, :4].T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 600)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    rows = draw(*shape, decoders.RandomResizedCrop(), 3000)
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
    scratch = decoders.Scratch(1, max(image.shape), size)
    flat = np.ascontiguousarray(image).reshape(-1)
    resize_crop(flat, image.shape[1], *box, flip, FILTERS[kind], target, scratch.row, scratch.weights, scratch.spans)
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
        reference = transforms.resized_crop(tensor, top, left, h, w, [size, size], MODES[kind], antialias=True)
        difference = np.abs(ours.astype(int) - reference.permute(1, 2, 0).numpy().astype(int))
        # torchvision rounds, and for bicubic clips, between its two passes; we do once, at the end.
        assert difference.max() <= (1 if kind == "bilinear" else 20)
        assert difference.mean() < 0.3


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


def test_frame_size_reads_what_opencv_reads_and_survives_anything(jpg_beton: Path) -> None:
    beton = open_beton(jpg_beton)
    content = np.fromfile(jpg_beton, np.uint8)
    generator = np.random.default_rng(0)
    for ptr, size, h, w in zip(beton.ptrs, beton.sizes, beton.heights, beton.widths, strict=True):
        data = content[ptr : ptr + size]
        assert jpeg.frame_size(data) == (h, w) == decode_rgb(data).shape[:2]
        for length in generator.integers(0, 700, 20):
            cut = data[:length].copy()
            assert jpeg.frame_size(cut) in {(0, 0), (h, w)}
            mutated = data[:700].copy()
            mutated[generator.integers(0, len(mutated), 8)] = generator.integers(0, 256, 8)
            jpeg.frame_size(mutated)
