"""Kinds of fault that kill a real `write_dataset.py` while it writes and publishes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from faults.kinds import Bench, Kind, Trial
from faults.points import environment, reached
from faults.runs import PATIENCE
from ffcv_train.data.format.beton import sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.data.open import open_data_set
from ffcv_train.system.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
_UNFINISHED = (".tmp-", ".journal-")


@dataclass(frozen=True)
class Writing:
    """Something that write_dataset.py makes of an image folder in an output folder."""

    name: str
    arguments: Callable[[Path, Path], list[str]]
    read: Callable[[Path], object]
    """Open all of it; raises `UserError` where it is refused"""


def _read_beton(output: Path) -> None:
    verify(output / "a.beton")
    open_data_set(str(output / "a.beton"))


def _read_zips(output: Path) -> None:
    for split in ("train", "val"):
        open_data_set(str(output / f"{split}.zip"), "zip")


BETON = Writing(
    "beton",
    lambda images, output: [
        *("--cfg.num_workers=1", "--cfg.write_mode=jpg", "--cfg.chunk_size=4"),
        *(f"--cfg.data_dir={images}", f"--cfg.write_path={output / 'a.beton'}"),
    ],
    _read_beton,
)
ZIPS = Writing("zips", lambda images, output: [f"--make-zip={images}", f"--output={output}"], _read_zips)


@dataclass(frozen=True)
class Whole:
    """What a writing makes of the old and of the new images when nothing happens; `points`: where it can be struck."""

    old: Path
    new: Path
    images: Path
    seconds: float
    points: int


def whole(bench: Bench, writing: Writing) -> Whole:
    """Those of `writing`; written once. Raises `RuntimeError` where that fails."""
    root = bench.root / writing.name
    images = root / "images"
    old, new = root / "old", root / "new"
    if not root.exists():
        shutil.copytree(bench.data / "images", images)
        for path in images.rglob("*.png"):
            ImageOps.invert(Image.open(path)).save(path)
        _write_undisturbed(writing, bench.data / "images", old)
        _write_undisturbed(writing, images, new)
    return Whole(old, new, images, float(_beside(new, "seconds").read_text()), len(reached(_beside(new, "points"))))


def _write_undisturbed(writing: Writing, images: Path, output: Path) -> None:
    points, log = _beside(output, "points"), _beside(output, "log")
    for folder in (output, points):
        folder.mkdir()
    command = _start(writing, images, output, log, points, 0)
    _wait(command, lambda: bool(_unfinished(output)))
    start = time.monotonic()
    if command.wait(PATIENCE) != 0:
        raise RuntimeError(f"writing without a fault failed: {log.read_text()}")
    _beside(output, "seconds").write_text(str(time.monotonic() - start))


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f"{output.name}-{what}")


def killed(writing: Writing, at_a_point: bool) -> Trial:
    """Where it replaces something, kill it; then there is the old or the new, or a sentence, and it can go on.

    `at_a_point`: at a random renaming, removal or bringing to the disk; else at a random moment of its work.
    """

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        known = whole(bench, writing)
        output, log, points = folder / "output", folder / "log.txt", folder / "points"
        points.mkdir()
        before = draw.choice((known.old, None))
        if before is None:
            output.mkdir()
        else:
            shutil.copytree(before, output)
        number = draw.randint(1, known.points) if at_a_point else 0
        command = _start(writing, known.images, output, log, points, number)
        if not at_a_point:
            _wait(command, lambda: bool(_unfinished(output)))
            time.sleep(draw.uniform(0, known.seconds))
            command.kill()
        status = command.wait(PATIENCE)
        if status not in (0, -signal.SIGKILL):
            return [f"status {status}: {log.read_text()[-300:]}"]
        wrong = _neither(writing, output, before, known.new)
        again = _start(writing, known.images, output, log, points, 0).wait(PATIENCE)
        wrong += [] if again == 0 else [f"again: status {again}: {log.read_text()[-300:]}"]
        wrong += [] if _files(output) == _files(known.new) else ["the end differs"]
        wrong += [f"{name} is left" for name in _unfinished(output)]
        return wrong + (["a traceback"] if "Traceback" in log.read_text() else [])

    return trial


def _neither(writing: Writing, output: Path, before: Path | None, new: Path) -> list[str]:
    """What is wrong where something can be read that is neither the old nor the new."""
    try:
        writing.read(output)
    except UserError:
        return []
    wholes = [_files(folder) for folder in (before, new) if folder is not None]
    return [] if _files(output) in wholes else ["a mixture is read"]


def _start(
    writing: Writing, images: Path, output: Path, log: Path, points: Path, number: int
) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "write_dataset.py", *writing.arguments(images, output)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment(points, number),
            stdout=file,
            stderr=file,
        )


def _wait(command: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while command.poll() is None and not until() and time.monotonic() < deadline:
        time.sleep(0.001)


def _unfinished(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if any(mark in path.name for mark in _UNFINISHED))


def _files(output: Path) -> dict[str, bytes]:
    """The finished files; of a sidecar all but where it was written."""
    found = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in _unfinished(output)}
    sidecar = sidecar_path(output / "a.beton").name
    if sidecar in found:
        content = json.loads(found[sidecar])
        del content["settings"]["write_path"]
        found[sidecar] = json.dumps(content).encode()
    return found


_WHOLE = "what is published is the old or the new as a whole, or refused; again, it ends with the same bytes"

KINDS = [
    Kind("conversion killed at a random moment", _WHOLE, 8, killed(BETON, False)),
    Kind("conversion killed where files are replaced", _WHOLE, 16, killed(BETON, True)),
    Kind("--make-zip killed at a random moment", _WHOLE, 6, killed(ZIPS, False)),
    Kind("--make-zip killed where files are replaced", _WHOLE, 12, killed(ZIPS, True)),
]
