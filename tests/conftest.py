"""Shared data: small betons of real photographs, written by the stock FFCV writer so that ours is not its own judge."""

import json
import os
import signal
from pathlib import Path

# Test processes share the cores; PyTorch's threads wait for each other at every operation. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

# A shell's background job ignores Ctrl-C, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


class Samples:
    """An indexable data set of (image, label) for the stock writer."""

    def __init__(self, images: list[np.ndarray], labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.labels[index]


def crops_of_photographs(count: int, low: int, high: int, seed: int = 0) -> list[np.ndarray]:
    """Crops of two photographs, uint8 [h, w, 3], with sides in [low, high]."""
    photographs = load_sample_images().images
    generator = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        h, w = generator.integers(low, high + 1, 2)
        top, left = generator.integers(0, photograph.shape[0] - h), generator.integers(0, photograph.shape[1] - w)
        crops.append(np.ascontiguousarray(photograph[top : top + h, left : left + w]))
    return crops


def write_stock_beton(path: Path, samples: Samples, write_mode: str = "jpg", classes: int = 0) -> Path:
    """Write with FFCV's own writer; with `classes`, add a sidecar that names so many."""
    import torch

    threads = torch.get_num_threads()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    torch.set_num_threads(threads)
    fields = {"image": RGBImageField(write_mode=write_mode, jpeg_quality=95), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1, page_size=1 << 21).from_indexed_dataset(samples)
    if classes:
        sidecar = {
            "num_samples": len(samples),
            "class_names": [f"class{i}" for i in range(classes)],
            "files": [f"photo{i}.jpg" for i in range(len(samples))],
        }
        Path(f"{path}.json").write_text(json.dumps(sidecar))
    return path


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


def decode_rgb(jpeg: np.ndarray) -> np.ndarray:
    """Reference decoding with OpenCV, uint8 [h, w, 3]."""
    return cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
