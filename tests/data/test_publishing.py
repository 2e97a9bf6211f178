"""What is written in several files is the old or the new as a whole, or refused, wherever writing it is killed."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_train.data.convert import write as write_module
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.data.open import open_data_set
from ffcv_train.data.sources.open import open_source
from ffcv_train.data.sources.source import SourceOptions
from ffcv_train.system.errors import UserError
from tests.support.kills import InProcess, Killed, abandons_files, killed_at
from tests.support.photographs import crops_of_photographs


def save(folder: Path, names: list[str], seed: int = 0) -> Path:
    for name, pixels in zip(names, crops_of_photographs(len(names), 20, 40, seed), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not re.search(r"\.(tmp|journal)-", file.name)}


def outcome(folder: Path, old: dict[str, bytes], new: dict[str, bytes], read: Callable[[], object]) -> str:
    """`read` succeeds on the old files or on the new ones, and on nothing else."""
    now = files_of(folder)
    try:
        read()
    except UserError as error:
        assert "again" in str(error) or "does not exist" in str(error)
        return "refused"
    assert now in (old, new), "a mixture was read"
    return "old" if now == old else "new"


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of raw pixels whose tables are equal but for what tells them apart: no size and no label differs."""
    root = tmp_path_factory.mktemp("betons")
    save(root / "one", ["ape/1.png", "ape/2.png", "bee/1.png"])
    shutil.copytree(root / "one", root / "two")
    for file in (root / "two").glob("*/*"):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    return root


def write(folder: Path, path: Path) -> Path:
    return convert(WriteConfig(data_dir=str(folder), write_path=str(path), write_mode="raw", num_workers=1))


@abandons_files
def test_a_beton_and_its_sidecar_at_every_kill(betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)
    path = tmp_path / "out" / "a.beton"
    path.parent.mkdir()
    new = files_of(write(betons / "two", path).parent)
    old = files_of(write(betons / "one", path).parent)
    for before in (old, {}):
        seen = set()
        for point in range(1, 50):
            shutil.rmtree(path.parent)
            path.parent.mkdir()
            for name, data in before.items():
                (path.parent / name).write_bytes(data)
            with killed_at(point) as reached, contextlib.suppress(Killed):
                write(betons / "two", path)
            if not reached:
                break
            seen.add(outcome(path.parent, before, new, lambda: verify(path)))
            assert outcome(path.parent, before, new, lambda: open_data_set(str(path))) in seen
        assert point > 8
        assert seen == ({"old", "refused", "new"} if before else {"refused", "new"})


def test_a_sidecar_of_another_file_is_refused_and_so_is_none(betons: Path, tmp_path: Path) -> None:
    one, two = write(betons / "one", tmp_path / "1.beton"), write(betons / "two", tmp_path / "2.beton")
    assert one.stat().st_size == two.stat().st_size
    shutil.copy(sidecar_path(two), sidecar_path(one))
    for read in (open_beton, verify):
        with pytest.raises(UserError, match=r"1\.beton\.json was not written with 1\.beton"):
            read(one)
    sidecar_path(one).unlink()
    for read in (open_beton, verify):
        with pytest.raises(UserError, match=r"1\.beton\.json, which was written with 1\.beton .* is missing"):
            read(one)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    save(root / "one", ["train/ape/1.png", "train/bee/1.png", "val/ape/2.png", "val/bee/2.png"])
    save(root / "two", ["train/ape/2.png", "train/cat/1.png", "val/ape/1.png", "val/cat/2.png"], seed=1)
    return root


def read_zips(folder: Path) -> None:
    for split in ("train", "val"):
        open_source("zip", SourceOptions(str(folder), split))
        open_data_set(str(folder / f"{split}.zip"), "zip")


@abandons_files
def test_zips_and_maps_at_every_kill(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_zips(images / "two", out)
    new = files_of(out)
    make_zips(images / "one", out)
    old = files_of(out)
    for before in (old, {}):
        seen = set()
        for point in range(1, 150):
            shutil.rmtree(out)
            out.mkdir()
            for name, data in before.items():
                (out / name).write_bytes(data)
            with killed_at(point) as reached, contextlib.suppress(Killed):
                make_zips(images / "two", out)
            if not reached:
                break
            state = outcome(out, before, new, lambda: read_zips(out))
            seen.add(state)
            if point % 7 == 0:
                make_zips(images / "two", out)
                assert outcome(out, before, new, lambda: read_zips(out)) == "new"
                assert sorted(path.name for path in out.iterdir()) == sorted(new)
        assert point > 20
        assert seen == ({"old", "refused", "new"} if before else {"refused", "new"})


def test_what_killed_packings_left_is_removed_unless_a_process_holds_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, held, foreign = (tmp_path / f"train.zip.tmp-{end}" for end in ("01234567", "89abcdef", "mine"))
    for path in (left, held, foreign, tmp_path / "classes.txt.tmp-01234567"):
        path.write_text("x")
    with held.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        make_zips(images / "one", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["train.zip", "val.zip", "train_map.txt", "val_map.txt", "classes.txt", held.name, foreign.name]
    )
    assert f"note: {left} is of a run that was killed; it is removed" in capsys.readouterr().out


def test_a_split_packed_alone_fits_what_is_there(images: Path, tmp_path: Path) -> None:
    make_zips(images / "one", tmp_path)
    make_zips(images / "one", tmp_path, "val")
    with pytest.raises(UserError, match=r"classes\.txt names other classes than the images of val have"):
        make_zips(images / "two", tmp_path, "val")
    (tmp_path / "make-zip.unfinished").write_text("train.zip\nval.zip\n")
    with pytest.raises(UserError, match="pack all splits again"):
        make_zips(images / "one", tmp_path, "val")
    (tmp_path / "make-zip.unfinished").write_text("val.zip\n")
    make_zips(images / "one", tmp_path, "val")
    read_zips(tmp_path)


@pytest.fixture
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    def at(number: int) -> None:
        real, calls = Path.replace, iter(range(1, 100))

        def replace(self: Path, target: Path) -> Path:
            if next(calls) == number:
                raise OSError(5, os.strerror(5))
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)

    yield at
    monkeypatch.undo()


@pytest.mark.parametrize(("number", "message"), [(1, "it is as it was before"), (2, "is then refused: run this again")])
def test_a_disk_that_fails_as_files_take_their_places(
    images: Path, tmp_path: Path, failing_rename: Callable[[int], None], number: int, message: str
) -> None:
    make_zips(images / "one", tmp_path)
    old = files_of(tmp_path)
    failing_rename(number)
    with pytest.raises(UserError, match=message):
        make_zips(images / "two", tmp_path)
    if number == 1:
        assert files_of(tmp_path) == old
        read_zips(tmp_path)
    else:
        with pytest.raises(UserError, match="may be a mixture of two"):
            read_zips(tmp_path)
