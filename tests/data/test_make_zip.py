"""write_dataset.py --make-zip: what the archives hold, that our reader takes them, that nothing is half-written."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_train.data.convert import make_zip
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.sources.open import open_source
from ffcv_train.data.sources.source import SourceOptions
from ffcv_train.data.sources.zips import read_map
from ffcv_train.system.errors import UserError
from tests.support.photographs import ROOT, crops_of_photographs


def write_images(folder: Path, names: list[str]) -> None:
    for number, (name, pixels) in enumerate(zip(names, crops_of_photographs(len(names), 20, 40), strict=True)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, format="PNG" if name.endswith("png") else "JPEG", quality=80 + number % 10)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_images(folder / "train", ["cat/a.jpg", "cat/deep/b.jpg", "cat/deep/c.png", "dog/a.jpg", "eel/ö ü.jpg"])
    write_images(folder / "val", ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "eel/3.jpg"])
    return folder


@pytest.mark.parametrize("compress", [False, True])
def test_layout_and_round_trip(images: Path, tmp_path: Path, compress: bool) -> None:
    output = tmp_path / "new" / "zips"
    made = make_zips(images, output, compress=compress)
    assert {path.name for path in made} == {path.name for path in output.iterdir()}
    assert {path.name for path in made} == {"train.zip", "train_map.txt", "val.zip", "val_map.txt", "classes.txt"}
    assert (output / "classes.txt").read_text().split() == ["cat", "dog", "eel"]
    train = [("cat/a.jpg", 0), ("cat/deep/b.jpg", 0), ("cat/deep/c.png", 0), ("dog/a.jpg", 1), ("eel/ö ü.jpg", 2)]
    assert read_map(output / "train_map.txt") == train
    assert read_map(output / "val_map.txt") == [("cat_1.jpg", 0), ("dog_1.jpg", 1), ("2.jpg", 1), ("3.jpg", 2)]
    with zipfile.ZipFile(output / "train.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"train/{name}" for name, _ in train]
        kinds = {entry.compress_type for entry in archive.infolist()}
        assert kinds == {zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED}
    with zipfile.ZipFile(output / "val.zip") as archive:
        assert archive.read("val/dog_1.jpg") == (images / "val/dog/1.jpg").read_bytes()
    for split in ("train", "val"):
        folder, packed = (open_source(*kind) for kind in (
            ("imagenet", SourceOptions(str(images), split)), ("zip", SourceOptions(str(output), split))
        ))  # fmt: skip
        assert packed.class_names == folder.class_names and np.array_equal(packed.labels, folder.labels)
        assert [packed.read(i) for i in range(len(packed))] == [folder.read(i) for i in range(len(folder))]


def test_the_same_images_make_the_same_files(images: Path, tmp_path: Path) -> None:
    for output in ("a", "b"):
        make_zips(images, tmp_path / output)
        os.utime(images / "train/cat/a.jpg", (1, 1))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_class_folders_alone_want_a_split(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say which split they are with --split"):
        make_zips(images / "val", tmp_path / "out")
    make_zips(images / "val", tmp_path / "out", "val")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.txt", "val.zip", "val_map.txt"]


def test_beyond_four_gigabytes_archives_are_zip64(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)  # of the size of a member or an offset, 2 GiB otherwise
    make_zips(images, tmp_path / "out")
    monkeypatch.undo()
    assert b"PK\x06\x06" in (tmp_path / "out/train.zip").read_bytes()
    packed = open_source("zip", SourceOptions(str(tmp_path / "out"), "train"))
    assert packed.read(1) == (images / "train/cat/deep/b.jpg").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda images: (images / "train/cat/a\tb.jpg").write_bytes(b"x"), "holds a tab"),
        (
            lambda images: Path(os.fsdecode(bytes(images / "train/dog") + b"/\xff.jpg")).write_bytes(b"x"),
            "no UTF-8 text",
        ),
        (lambda images: (images / "val/fox").mkdir(), "class folder 'fox'"),
        (
            lambda images: (images / "val/cat_1.jpg").parent.joinpath("dog/cat_1.jpg").write_bytes(b"x"),
            "both be called",
        ),
        (lambda images: (images / "train/dog/a.jpg").chmod(0), "cannot read dog/a.jpg"),
    ],
)
def test_what_cannot_be_packed(images: Path, tmp_path: Path, damage: object, message: str) -> None:
    damage(images)  # type: ignore[operator]
    if "cannot read" in message and os.geteuid() == 0:
        pytest.skip("root reads all files")
    with pytest.raises(UserError, match=message):
        make_zips(images, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_was_there_stays_where_packing_fails(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    make_zips(images, output)
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    monkeypatch.setattr(make_zip.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match="free space there"):
        make_zips(images, output)
    monkeypatch.undo()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; it is as it was before"):
        make_zips(images, output)
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_stopped_by_a_signal_it_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "images/train/cat"
    source.mkdir(parents=True)
    for number in range(3000):
        (source / f"{number}.jpg").write_bytes(os.urandom(40_000))
    command = [
        sys.executable,
        "write_dataset.py",
        "--make-zip",
        str(tmp_path / "images"),
        "--output",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "out").glob("train.zip.tmp-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and "stopped by SIGTERM" in errors
    assert list((tmp_path / "out").iterdir()) == []


def test_by_the_real_script(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "write_dataset.py", "--make-zip", str(images), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out/val_map.txt") in done.stdout
    refused = subprocess.run([*command, "--fast"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "--fast" in refused.stderr
