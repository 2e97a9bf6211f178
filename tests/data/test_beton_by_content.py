"""A .beton file is one by its content: FFCV's own users call theirs .ffcv, or anything."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ffcv_train.data.format.beton import Beton, is_beton, sidecar_path
from ffcv_train.data.loading.pictures import open_pictures
from ffcv_train.data.open import open_data_set
from ffcv_train.data.sources.class_files import read_class_names
from ffcv_train.evaluation.gradcam_images import open_images
from tests.support.runs import Betons


@pytest.fixture(params=["val.ffcv", "val.dat", "val", "val.zip"])
def renamed(request: pytest.FixtureRequest, small_betons: Betons, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    shutil.copy(small_betons[1], path)
    shutil.copy(sidecar_path(small_betons[1]), sidecar_path(path))
    return path


def test_a_beton_of_any_name_is_opened_everywhere(renamed: Path, small_betons: Betons) -> None:
    assert is_beton(renamed)
    whole = open_data_set(small_betons[1])
    for format in (None, "beton", "zip", "folder"):
        data_set = open_data_set(renamed, format)
        assert isinstance(data_set, Beton)
        assert np.array_equal(data_set.labels, whole.labels)
    assert read_class_names(renamed) == whole.class_names
    assert len(open_pictures([str(renamed)])) == len(whole)
    assert open_images(renamed, indices=[1, 2]).labels(None) == whole.labels[[1, 2]].tolist()


def test_other_files_are_no_betons(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    for name, content in (
        ("empty", b""),
        ("short", b"\2\0\2\0"),
        ("text.ffcv", b"cat\ndog\n" * 9),
        ("zeros", bytes(99)),
    ):
        (tmp_path / name).write_bytes(content)
    assert not any(is_beton(path) for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "absent"])
