"""A conversion that was killed goes on from what is sound in its unfinished file, and ends with the same bytes."""

import contextlib
import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from ffcv_train.data.convert import write as write_module
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.system.errors import UserError
from tests.support import kills
from tests.support.kills import InProcess, Killed, abandons_files, killed_at
from tests.support.photographs import ROOT, crops_of_photographs

COUNT = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 photographs in three classes; the tenth of each thirty is damaged."""
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(crops_of_photographs(COUNT, 60, 150)):
        file = root / ("ape", "bee", "cat")[number // 40] / f"{number:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
        if number % 30 == 10:
            file.write_bytes(file.read_bytes()[:200])
    return root


OPTIONS = {"write_mode": "proportion", "on_error": "skip", "max_resolution": 140, "chunk_size": 4}


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The file that is written in one go, and its sidecar but for the path."""
    path = tmp_path_factory.mktemp("whole") / "a.beton"
    return contents(convert(WriteConfig(data_dir=str(images), write_path=str(path), num_workers=1, **OPTIONS)))


def contents(path: Path) -> dict[str, bytes]:
    sidecar = json.loads(sidecar_path(path).read_text())
    for name in ("write_path", "num_workers"):
        del sidecar["settings"][name]
    return {"beton": path.read_bytes(), "sidecar": json.dumps(sidecar).encode()}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)


def write(images: Path, path: Path, **options: object) -> Path:
    return convert(WriteConfig(data_dir=str(images), write_path=str(path), num_workers=1, **{**OPTIONS, **options}))


def kill_after(chunks: int, images: Path, path: Path, **options: object) -> None:
    """Leave what a run leaves that is killed after so many tasks."""
    with pytest.MonkeyPatch.context() as patch:
        count = iter(range(10_000))
        real = write_module.Journal.add

        def add(self: write_module.Journal, chunk: object) -> None:
            real(self, chunk)  # type: ignore[arg-type]
            if next(count) == chunks:
                patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead remove nothing
                raise Killed

        patch.setattr(write_module.Journal, "add", add)
        with pytest.raises(Killed):
            write(images, path, **options)


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("chunks", [0, 7, 28])
def test_it_goes_on_from_there(
    images: Path, tmp_path: Path, whole: dict[str, bytes], chunks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.beton"
    kill_after(chunks, images, path)
    assert len(left(tmp_path)) == 2 and not path.exists()
    capsys.readouterr()
    write(images, path, chunk_size=7)
    text = capsys.readouterr().out
    assert f"{4 * (chunks + 1)} of the 120 images are in a.beton.tmp-" in text
    assert contents(path)["beton"] == whole["beton"]
    assert left(tmp_path) == ["a.beton", "a.beton.json"]
    verify(path)


@pytest.mark.usefixtures("in_process")
def test_only_what_is_sound_is_taken_up(
    images: Path, tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte changed in the file, the journal torn or changed, the file cut off."""
    path = tmp_path / "a.beton"
    first = int(open_beton_of(whole, tmp_path / "whole.beton").ptrs[20])

    def flip(file: Path, position: int) -> None:
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        file.write_bytes(data)

    def tear(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-5])

    def change_line(file: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        lines[3] = lines[3].replace(b"1", b"2")
        file.write_bytes(b"".join(lines))

    # Samples 0 … 20 are of the images 0 … 21, for 10 is damaged.
    for taken, damage in (
        (20, lambda unfinished, journal: flip(unfinished, first + 3)),
        (20, lambda unfinished, journal: os.truncate(unfinished, first + 1)),
        (60, lambda unfinished, journal: tear(journal)),
        (8, lambda unfinished, journal: change_line(journal)),
        (0, lambda unfinished, journal: journal.unlink()),
        (0, lambda unfinished, journal: journal.write_bytes(b"")),
        (0, lambda unfinished, journal: journal.write_bytes(b"\xff\0" * 1000)),
    ):
        kill_after(15, images, path)
        damage(next(tmp_path.glob("a.beton.tmp-*")), next(tmp_path.glob("a.beton.journal-*")))
        capsys.readouterr()
        write(images, path)
        text = capsys.readouterr().out
        assert (f"{taken} of the 120 images are in" in text) == (taken > 0), text
        assert ("is of a run that was killed" in text) == (taken == 0)
        assert contents(path)["beton"] == whole["beton"]
        assert left(tmp_path) == ["a.beton", "a.beton.json", "whole.beton", "whole.beton.json"]


def open_beton_of(whole: dict[str, bytes], path: Path):  # type: ignore[no-untyped-def]
    path.write_bytes(whole["beton"])
    sidecar_path(path).write_bytes(whole["sidecar"])
    return open_beton(path)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("change", [{"jpeg_quality": 80}, {"seed": 1}, {"page_size": 1 << 21}, {"subset": 100}])
def test_other_options_begin_anew(
    images: Path, tmp_path: Path, change: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_after(10, images, tmp_path / "a.beton")
    write(images, tmp_path / "a.beton", **change)
    text = capsys.readouterr().out
    assert "is of a run that was killed with other options, images or versions; it is removed" in text
    assert "images are in" not in text
    assert left(tmp_path) == ["a.beton", "a.beton.json"]
    verify(tmp_path / "a.beton")


@pytest.mark.usefixtures("in_process")
def test_an_image_that_changed_since_is_read_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for number, pixels in enumerate(crops_of_photographs(30, 40, 60)):
        Image.fromarray(pixels).save(folder / "a" / f"{number:02d}.png")
    path = tmp_path / "a.beton"
    kill_after(5, folder, path, write_mode="raw")
    white = np.full((50, 50, 3), 255, np.uint8)
    Image.fromarray(white).save(folder / "a" / "13.png")
    capsys.readouterr()
    write(folder, path, write_mode="raw")
    assert "12 of the 30 images are in" in capsys.readouterr().out
    beton = open_beton(path)
    start = int(beton.ptrs[13])
    assert path.read_bytes()[start : start + int(beton.sizes[13])] == white.tobytes()


@pytest.mark.usefixtures("in_process")
def test_a_file_that_another_process_writes_is_left_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(10, images, tmp_path / "a.beton")
    (unfinished,) = tmp_path.glob("a.beton.tmp-*")
    monkeypatch.setattr("ffcv_train.data.convert.unfinished._PATIENCE_SECONDS", 0.1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with unfinished.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(
            UserError, match=r"another process is writing .*a\.beton \(it holds .*; wait until it is done"
        ):
            write(images, tmp_path / "a.beton")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write(images, tmp_path / "a.beton")
    assert left(tmp_path) == ["a.beton", "a.beton.json"]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("ends", [UserError, KeyboardInterrupt])
def test_what_was_chosen_is_let_go_of_where_another_process_holds_the_next(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: type[BaseException]
) -> None:
    """At the end of its patience, and at Ctrl-C before that."""
    kill_after(10, images, tmp_path / "a.beton")
    held = tmp_path / "a.beton.tmp-01234567"
    held.touch()
    clock = itertools.count()

    def sleep(seconds: float) -> None:
        if ends is KeyboardInterrupt:
            raise KeyboardInterrupt

    time = SimpleNamespace(monotonic=lambda: float(next(clock)), sleep=sleep)
    monkeypatch.setattr("ffcv_train.data.convert.unfinished.time", time)
    with held.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(ends) as caught:
            write(images, tmp_path / "a.beton")
    # The error keeps all that its frames have open.
    assert caught.tb is not None
    assert [file.path for file in psutil.Process().open_files() if Path(file.path).parent == tmp_path] == []
    monkeypatch.undo()
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)
    write(images, tmp_path / "a.beton")
    assert left(tmp_path) == ["a.beton", "a.beton.json"]


@pytest.mark.usefixtures("in_process")
def test_leftovers_of_files_that_are_gone_are_removed(images: Path, tmp_path: Path) -> None:
    for name in ("a.beton.tmp-01234567.json", "a.beton.journal-01234567", "a.beton.tmp-89abcdef"):
        (tmp_path / name).write_text("x")
    for name in ("b.beton.tmp-01234567", "a.beton.json"):
        (tmp_path / name).write_text("mine")
    write(images, tmp_path / "a.beton")
    assert left(tmp_path) == ["a.beton", "a.beton.json", "b.beton.tmp-01234567"]


@abandons_files
@pytest.mark.usefixtures("in_process")
def test_killed_at_16_random_points_it_ends_with_the_same_bytes(
    images: Path, tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Points are those of writing samples and the journal, of the disk, of names that come and go."""
    path = tmp_path / "a.beton"
    generator = random.Random(0)
    where = []
    for _ in range(16):
        # Each gets some tasks further, so the last ones hit the end again and again.
        points = killed_at(generator.randrange(1, 24), (kills, "write_samples"), (write_module.Journal, "add"))
        with contextlib.suppress(Killed), points as died:
            write(images, path)
        where += died
    assert len(where) == 16 and len(set(where)) >= 5, where
    write(images, path)
    assert capsys.readouterr().out.count("images are in a.beton.tmp-") > 8
    assert contents(path) == whole
    assert left(tmp_path) == ["a.beton", "a.beton.json"]


@pytest.mark.usefixtures("in_process")
def test_killed_with_its_workers(images: Path, tmp_path: Path) -> None:
    """By the real command, whose worker outlives it for a moment."""
    path, options = tmp_path / "a.beton", {"max_resolution": 0}
    (tmp_path / "killed.py").write_text(
        "import os, sys\n"
        "from ffcv_train.data.convert import write as w\n"
        "real, count = w.Journal.add, iter(range(10**6))\n"
        "def add(self, chunk):\n"
        "    real(self, chunk)\n"
        "    if next(count) == 3: os.kill(os.getpid(), 9)\n"
        "w.Journal.add = add\n"
        "from ffcv_train.cli.write import main\n"
        "if __name__ == '__main__': main(sys.argv[1:])\n"
    )
    arguments = [
        f"--cfg.{name}={value}"
        for name, value in {**OPTIONS, **options, "data_dir": images, "write_path": path}.items()
    ]
    done = subprocess.run(
        [sys.executable, "killed.py", *arguments, "--cfg.num_workers=1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (tmp_path / "whole").mkdir()
    whole = write(images, tmp_path / "whole" / "a.beton", **options)
    write(images, path, **options)
    assert contents(path) == contents(whole)
    assert left(tmp_path) == ["a.beton", "a.beton.json", "killed.py", "whole"]
