"""A .beton file from any data set of (Pillow image, label): pixels, labels, names, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from ffcv_train import CenterCrop, Loader, UserError, WriteConfig, open_data_set, write_dataset
from ffcv_train.data.sources.indexed import IndexedSource
from tests.support.photographs import Samples, crops_of_photographs


class Photographs(Dataset):
    """As many people's data sets are: no list of labels."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), index % 3


def test_written_file_holds_pixels_labels_and_names(tmp_path: Path) -> None:
    images = crops_of_photographs(7, 32, 32)
    config = WriteConfig(write_path=str(tmp_path / "a.beton"), write_mode="raw", num_workers=1)
    path = write_dataset(config, Photographs(images), ["cat", "dog", "owl"])
    data_set = open_data_set(path)
    assert data_set.class_names == ("cat", "dog", "owl")
    assert data_set.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    with Loader(data_set, 7, crop=CenterCrop(1.0), resolution=32, device="cpu", num_workers=1) as loader:
        (batch,) = loader
    assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(np.stack(images)))
    sidecar = json.loads(path.with_name("a.beton.json").read_text())
    assert sidecar["source"] == {"dataset": "Photographs", "num_images": 7}
    assert sidecar["files"][0] == "Photographs[0]"


def test_sources_take_what_data_sets_say_of_themselves(tmp_path: Path) -> None:
    """torchvision's ImageFolder names classes and labels; grey and 16-bit images become RGB, Exif turns them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 6), 200, np.uint8)).save(tmp_path / name / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "b" / "turned.jpg", exif=exif)
    folder = ImageFolder(str(tmp_path), loader=Image.open)
    source = IndexedSource(folder)
    assert (source.class_names, source.labels.tolist()) == (("a", "b"), [0, 1, 1])
    assert source.read(0).shape == (4, 6, 3)
    assert source.read(2).shape == (8, 4, 3)


def test_what_does_not_fit_is_refused(tmp_path: Path, photo_samples: Samples) -> None:
    target = tmp_path / "a.beton"
    config = WriteConfig(write_path=str(target), num_workers=1)
    image = Image.new("RGB", (8, 8))
    refused: list[tuple[Any, Any, str]] = [
        ([(image, 0), (image, 3)], ["a"], "label 3, but class_names has 1 names"),
        ([(image, -1)], None, "whole numbers from 0"),
        ([(torch.zeros(3, 8, 8), 0)], None, r"list\[0\] is Tensor, not a Pillow image"),
        ([], None, "data_set holds no images"),
    ]
    for data_set, names, message in refused:
        with pytest.raises(UserError, match=message):
            write_dataset(config, data_set, names)
    with pytest.raises(UserError, match="data_dir is for images that config names"):
        write_dataset(WriteConfig(write_path=str(target), data_dir="d"), photo_samples)
    with pytest.raises(UserError, match="jpeg_quality in config must be at most 100"):
        write_dataset(WriteConfig(write_path=str(target), data_dir="d", jpeg_quality=101))
    with pytest.raises(UserError, match=r"^write_path: the folder"):
        write_dataset(WriteConfig(write_path=str(tmp_path / "none" / "a.beton")), photo_samples)
    with pytest.raises(TypeError, match="config must be a WriteConfig, not str"):
        write_dataset("a.beton")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
