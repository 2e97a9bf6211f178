"""Photographs as arrays, and small betons of them by the stock FFCV writer, so that ours is not its own judge."""

import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

ROOT = Path(__file__).resolve().parents[2]


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


def decode_rgb(jpeg: np.ndarray) -> np.ndarray:
    """Reference decoding with OpenCV, uint8 [h, w, 3]."""
    return cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
