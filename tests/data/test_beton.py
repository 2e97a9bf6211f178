import json
import shutil
from pathlib import Path

import ffcv.types
import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.reader import Reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffcv_train.data.classes import check_labels
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.layout import (
    ALLOCATION,
    FIELD_DESCRIPTION,
    FORMAT_VERSION,
    HEADER,
    IMAGE_TYPE_ID,
    INT_TYPE_ID,
    SAMPLE,
)
from ffcv_train.data.kernels.modes import MODE_JPG, MODE_RAW
from ffcv_train.system.errors import UserError


@pytest.fixture
def copy(jpg_beton: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.beton"
    shutil.copy(jpg_beton, path)
    shutil.copy(sidecar_path(jpg_beton), sidecar_path(path))
    return path


def patch(path: Path, offset: int, value: np.ndarray | bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value if isinstance(value, bytes) else value.tobytes())


def row_offset(path: Path, sample: int, field: str) -> int:
    """Where in the file a number of a sample's row lies."""
    dtype = SAMPLE
    start = HEADER.itemsize + 2 * FIELD_DESCRIPTION.itemsize + sample * dtype.itemsize
    return start + (dtype.fields["f1"][1] if field == "label" else dtype["f0"].fields[field][1])


def test_tables_equal_those_of_the_stock_reader(jpg_beton: Path) -> None:
    beton, reader = open_beton(jpg_beton), Reader(str(jpg_beton))
    assert np.array_equal(beton.labels, reader.metadata["f1"])
    for name, ours in (("width", beton.widths), ("height", beton.heights), ("data_ptr", beton.ptrs)):
        assert np.array_equal(ours, reader.metadata["f0"][name])
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    assert [sizes[p] for p in beton.ptrs] == list(beton.sizes)
    assert beton.class_names == tuple(f"class{i}" for i in range(5))


def test_our_layout_is_ffcvs() -> None:
    assert FORMAT_VERSION == ffcv.types.CURRENT_VERSION
    assert ffcv.types.HeaderType == HEADER
    assert ffcv.types.FieldDescType == FIELD_DESCRIPTION
    assert ALLOCATION == ffcv.types.ALLOC_TABLE_TYPE
    assert ffcv.types.get_metadata_type([RGBImageField(), IntField()]) == SAMPLE
    for type_id, field in ((IMAGE_TYPE_ID, RGBImageField), (INT_TYPE_ID, IntField)):
        assert ffcv.types.TYPE_ID_HANDLER[type_id] is field
    assert (IMAGE_MODES["jpg"], IMAGE_MODES["raw"]) == (MODE_JPG, MODE_RAW)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("label", np.int64(-3), "negative label"),
        ("mode", np.uint8(7), "storage mode"),
        ("width", np.uint16(0), "no pixels"),
        ("data_ptr", np.uint64(12), "no image was stored"),
        ("data_ptr", np.uint64(2**63), "no image was stored"),
        ("mode", np.uint8(1), "raw but not"),
    ],
)
def test_a_damaged_row_is_named(copy: Path, field: str, value: np.generic, words: str) -> None:
    patch(copy, row_offset(copy, 41, field), np.asarray(value))
    with pytest.raises(UserError, match=words) as caught:
        open_beton(copy)
    assert "sample 41" in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(copy: Path, share: float) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError):
        open_beton(copy)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "readme.beton"
    text.write_text("not a data set " * 1000)
    for path, words in (
        (text, "not a .beton"),
        (tmp_path, "is a folder"),
        (tmp_path / "absent.beton", "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            open_beton(path)


def test_other_fields_are_refused(copy: Path) -> None:
    patch(copy, HEADER.itemsize + 1, b"photo")
    with pytest.raises(UserError, match="photo"):
        open_beton(copy)


def test_a_sidecar_of_another_file_is_refused(copy: Path) -> None:
    sidecar = json.loads(sidecar_path(copy).read_text())
    sidecar["num_samples"] += 1
    sidecar_path(copy).write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match="does not describe"):
        open_beton(copy)


def test_labels_outside_the_classes_are_named_with_their_file(jpg_beton: Path) -> None:
    beton = open_beton(jpg_beton)
    check_labels(beton, 5)
    with pytest.raises(UserError, match=r"sample 3 \(photo3.jpg\).*label 3.*3 classes"):
        check_labels(beton, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_tables_open_or_are_refused(jpg_beton: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mutated.beton"
    content = bytearray(jpg_beton.read_bytes())
    tables = row_offset(jpg_beton, 67, "mode")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(
            st.one_of(st.integers(0, tables - 1), st.integers(len(content) - 67 * 24, len(content) - 1))
        )
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        beton = open_beton(path)
    except UserError:
        return
    assert (beton.ptrs >= tables).all()
    assert (beton.ptrs + beton.sizes <= len(content)).all()
