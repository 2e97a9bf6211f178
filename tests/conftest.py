"""Shared data: small betons of real photographs, written by the stock FFCV writer so that ours is not its own judge."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Test processes share the cores; PyTorch's threads wait for each other at every operation. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton

# A shell's background job ignores Ctrl-C, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photo_samples() -> Samples:
    """67 photographs of 40 to 200 pixels a side in 5 classes."""
    images = crops_of_photographs(67, 40, 200)
    return Samples(images, [i % 5 for i in range(67)])


@pytest.fixture(scope="session")
def jpg_beton(tmp_path_factory: pytest.TempPathFactory, photo_samples: Samples) -> Path:
    """`photo_samples` as JPEG."""
    return write_stock_beton(tmp_path_factory.mktemp("jpg") / "photos.beton", photo_samples, "jpg", 5)


@pytest.fixture(scope="session")
def raw_beton(tmp_path_factory: pytest.TempPathFactory, photo_samples: Samples) -> Path:
    """`photo_samples` as raw pixels."""
    return write_stock_beton(tmp_path_factory.mktemp("raw") / "photos.beton", photo_samples, "raw", 5)


@pytest.fixture(scope="session")
def small_betons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training (96) and validation (50) sets of 32-pixel images in 4 classes that a network can tell apart."""
    folder = tmp_path_factory.mktemp("small")
    paths = []
    for name, count, seed in (("train", 96, 1), ("val", 50, 2)):
        images = crops_of_photographs(count, 32, 32, seed)
        labels = [i % 4 for i in range(count)]
        for image, label in zip(images, labels, strict=True):
            image[:, :, label % 3] = image[:, :, label % 3] // 2 + (64 if label == 3 else 127)
        paths.append(write_stock_beton(folder / f"{name}.beton", Samples(images, labels), "raw", 4))
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_betons: tuple[Path, Path]) -> Path:
    """The folder of a run of two epochs on `small_betons`."""
    from tests.support.runs import train

    return train(small_betons, tmp_path_factory.mktemp("run"), "--logging.run=small")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test left in cycles of references goes with it, and warns of itself there."""
    yield
    gc.collect()
