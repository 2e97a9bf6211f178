import hashlib
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

from benchmarks.loading.tiny_set import write_tiny_set
from ffcv_train.data.classes import check_labels
from ffcv_train.data.format import beton as beton_module
from ffcv_train.data.format import sidecar as sidecar_module
from ffcv_train.data.format.beton import Beton, open_beton, sidecar_path
from ffcv_train.data.format.layout import (
    ALLOCATION,
    FIELD_DESCRIPTION,
    FORMAT_VERSION,
    HEADER,
    IMAGE_TYPE_ID,
    INT_TYPE_ID,
    SAMPLE,
)
from ffcv_train.data.format.pagefile import tables_crc
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


def as_held(beton: Beton) -> list[np.ndarray]:
    return [getattr(beton, name) for name in ("labels", "modes", "heights", "widths", "ptrs", "sizes")]


def with_checksums(path: Path) -> str:
    """Give the sidecar the checksums that ours have; returns those of the samples."""
    samples = "".join(f"{i:08x}" for i in range(67))
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar["checksums"] = {"tables": f"{tables_crc(path):08x}", "samples": samples}
    sidecar_path(path).write_text(json.dumps(sidecar))
    return samples


def test_a_sample_takes_25_bytes_and_the_digest_is_that_of_64_bit_tables(copy: Path) -> None:
    checksums = with_checksums(copy)
    beton = open_beton(copy)
    assert sum(table.nbytes for table in as_held(beton)) == 25 * len(beton)
    # What checkpoints hold, of this version and of older ones.
    digest = hashlib.sha256()
    for table in as_held(beton):
        digest.update(table.astype(np.uint8 if table is beton.modes else np.int64).tobytes())
    digest.update(checksums.encode())
    assert beton.digest() == digest.hexdigest()


def test_what_samples_take_at_most_is_known(jpg_beton: Path, raw_beton: Path) -> None:
    for path in (jpg_beton, raw_beton):
        beton = open_beton(path)
        jpeg = beton.modes == MODE_JPG
        pixels = [int(h) * int(w) for h, w in zip(beton.heights, beton.widths, strict=True)]
        assert beton.pixels().tolist() == pixels
        assert beton.extent.image_bytes == 3 * max(p if is_jpeg else 0 for p, is_jpeg in zip(pixels, jpeg, strict=True))
        assert beton.extent.stored_bytes == (beton.sizes * jpeg).max()
        assert beton.extent.side == max(beton.heights.max(), beton.widths.max())


@pytest.mark.parametrize("turned", [0, 1, 580])
@pytest.mark.parametrize("rows", [16, 1 << 16])
def test_tables_beyond_4_gib_in_any_order_of_regions(
    tmp_path: Path, turned: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of any number of rows; FFCV's writers end in any order, ours in that of the samples."""
    monkeypatch.setattr(beton_module, "_ROWS", rows)
    path, count = tmp_path / "large.beton", 600
    # Holes, which take no disk.
    write_tiny_set(path, count, 7, image_bytes=1 << 23, turned=turned)
    beton = open_beton(path)
    assert beton.file_size > 4 << 30 and beton.labels.tolist() == [i % 7 for i in range(count)]
    assert np.diff(beton.ptrs).tolist() == [1 << 23] * (count - 1) and (beton.sizes == 3).all()
    sidecar_path(path).unlink()
    patch(path, HEADER.itemsize + 1041 + 17, bytes(80))  # the field's arguments, which name the sidecar
    assert open_beton(path).sidecar is None
    for value, words in ((beton.ptrs[3] + 1, "no image was stored"), (beton.ptrs[540], "image of sample 540")):
        patch(path, row_offset(path, 571, "data_ptr"), np.uint64(value))
        with pytest.raises(UserError, match=f"sample 571 points to byte {value}, .*{words}"):
            open_beton(path)
    patch(path, row_offset(path, 571, "data_ptr"), np.uint64(beton.ptrs[571]))
    patch(path, row_offset(path, 533, "label"), np.int64(-1))
    with pytest.raises(UserError, match=r"sample 533 at byte .* has a negative label"):
        open_beton(path)


def test_what_is_long_in_a_sidecar_is_read_when_it_is_asked_for(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_checksums(copy)
    at_once = open_beton(copy)
    monkeypatch.setattr(sidecar_module, "_HELD_BYTES", 100)
    later, other = open_beton(copy), open_beton(copy)
    assert later.sidecar is not None and later.sidecar == at_once.sidecar
    assert later.digest() == at_once.digest() and later.class_names == at_once.class_names
    assert later.files == at_once.files and "(photo7.jpg)" in later.describe(7)

    content = sidecar_path(copy).read_text()
    sidecar_path(copy).write_text(content + " ")
    assert "(photo7.jpg)" in later.describe(7) and "sample 7 at byte" in other.describe(7)
    for ask in (lambda: other.files, other.digest):
        with pytest.raises(UserError, match=r"copy.beton.json was replaced or written to since it was opened"):
            ask()


@pytest.mark.parametrize("held", [100, 1 << 20])
def test_names_in_a_sidecar_may_be_no_unicode_and_must_be_names(
    copy: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar_module, "_HELD_BYTES", held)
    sidecar = json.loads(sidecar_path(copy).read_text())
    sidecar["files"][7] = "phot\udcf6.jpg"  # as Python reads a name in Latin-1
    sidecar_path(copy).write_text(json.dumps(sidecar))
    assert "(phot\udcf6.jpg)" in open_beton(copy).describe(7)
    sidecar["files"][7] = 7
    sidecar_path(copy).write_text(json.dumps(sidecar))
    if held == 100:
        beton = open_beton(copy)
        assert "sample 8 at byte" in beton.describe(8)
        with pytest.raises(UserError, match=r"copy.beton.json is damaged: not all of its files are names"):
            assert beton.files
    for files in ("x" * 1000, {"a": "b" * 1000}, 7, [7], None):
        sidecar_path(copy).write_text(json.dumps({**sidecar, "files": files}))
        with pytest.raises(UserError, match="does not describe"):
            open_beton(copy)
