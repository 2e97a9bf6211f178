"""Files that a conversion writes to, and those that a killed one left behind.

Whoever writes to such a file, worker processes too, holds a shared lock on it, which ends with the process however that
ends: what can be locked exclusively is nobody's.
"""

import contextlib
import copy
import fcntl
import glob
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from ffcv_train.data.convert.encoding import EncodedChunk
from ffcv_train.data.convert.journal import read_journal, verified
from ffcv_train.data.convert.worker import hold
from ffcv_train.data.format.beton import sidecar_path
from ffcv_train.data.format.pagefile import Placement
from ffcv_train.data.sources.source import Place
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine

_MARK = ".tmp-"
_JOURNAL_MARK = ".journal-"
_NUMBER = re.compile("[0-9a-f]{8}")
_PATIENCE_SECONDS = 20.0
"""Workers outlive a killed parent until they have done what they are at."""


@dataclass(frozen=True)
class Unfinished:
    """A file on its way to `target`, held by this process as long as `handle` is open."""

    path: Path
    handle: BufferedRandom

    @property
    def journal(self) -> Path:
        return journal_path(self.path)

    def remove(self) -> None:
        """Remove what is left of it, and what belongs to it; then let go of it."""
        for file in (sidecar_path(self.path), self.journal, self.path):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a full disk refused is in its buffer still
            self.handle.close()


def journal_path(path: Path) -> Path:
    """Where the journal of the unfinished file `path` lies."""
    target, _, number = path.name.rpartition(_MARK)
    return path.with_name(f"{target}{_JOURNAL_MARK}{number}")


def begin(target: Path) -> Unfinished:
    """A new, empty file beside `target`."""
    while True:
        path = target.with_name(f"{target.name}{_MARK}{secrets.token_hex(4)}")
        handle = path.open("x+b")
        # Between opening and locking it, another process may have taken it for a leftover and removed it.
        hold(handle)
        if os.fstat(handle.fileno()).st_nlink:
            return Unfinished(path, handle)
        handle.close()


def take_up(
    target: Path, fingerprint: Any, placement: Placement, place: Callable[[int], Place], progress: ProgressLine
) -> tuple[Unfinished, list[EncodedChunk]]:
    """The file to write on the way to `target`, and what it holds already, verified: nothing where it is new.

    `fingerprint` is that of the journal to go on from, `placement` that of an empty file, `place` gives a sample's
    source. What killed runs left and is of no use is removed. Raises `UserError` where another process is writing.
    """
    chosen: tuple[Unfinished, list[EncodedChunk]] | None = None
    with contextlib.ExitStack() as on_error:
        for leftover in _leftovers(target, progress):
            on_error.callback(leftover.handle.close)
            chunks = read_journal(leftover.journal, fingerprint)
            if chunks and chosen is None:
                chunks = verified(chunks, leftover.handle, copy.copy(placement), place, progress)
                if not hold(leftover.handle):
                    leftover.handle.close()
                    continue
                if chunks:
                    chosen = leftover, chunks
                    continue
            why = " with other options, images or versions" if chunks is None and leftover.journal.exists() else ""
            progress.print(f"note: {leftover.path} is of a run that was killed{why}; it is removed")
            leftover.remove()
        on_error.pop_all()
    return chosen or (begin(target), [])


def remove_leftovers(target: Path, progress: ProgressLine) -> None:
    """Remove what killed runs left on their way to `target`; what a process holds stays."""
    for path in _beside(target, _MARK):
        if not _NUMBER.fullmatch(path.name.rpartition(_MARK)[2]):
            continue
        with contextlib.suppress(OSError), path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            progress.print(f"note: {path} is of a run that was killed; it is removed")


def _leftovers(target: Path, progress: ProgressLine) -> Iterator[Unfinished]:
    """The files that killed runs left on their way to `target`, longest journals first, claimed by this process alone.

    Raises `UserError` where another process is writing to `target` right now.
    """
    # Journals before files: what is begun meanwhile has both, and is no leftover.
    journals, found = _beside(target, _JOURNAL_MARK), _beside(target, _MARK)
    sidecars = [path for path in found if path.suffix == ".json"]
    found = [path for path in found if path not in sidecars and path.is_file()]
    for path in sorted(found, key=lambda path: (-_size(journal_path(path)), path)):
        try:
            handle = path.open("r+b")
        except FileNotFoundError:
            continue
        with contextlib.ExitStack() as unclaimed:
            unclaimed.callback(handle.close)
            try:
                _claim(handle)
            except BlockingIOError:
                raise UserError(
                    f"another process is writing {target} (it holds {path}); wait until it is done, or choose another "
                    "--cfg.write_path"
                ) from None
            except OSError:
                progress.print(f"note: {path} is of a run that was killed, or is still at work; if killed, delete it")
                continue
            if not os.fstat(handle.fileno()).st_nlink:
                continue
            unclaimed.pop_all()
        yield Unfinished(path, handle)
    # What belonged to files that are gone.
    for path in sidecars:
        if not path.with_suffix("").exists():
            path.unlink(missing_ok=True)
    for path in journals:
        if not path.with_name(path.name.replace(_JOURNAL_MARK, _MARK)).exists():
            path.unlink(missing_ok=True)


def _beside(target: Path, mark: str) -> list[Path]:
    return list(target.parent.glob(f"{glob.escape(target.name)}{mark}*"))


def _claim(handle: BufferedRandom) -> None:
    """Lock `handle` exclusively; raises `BlockingIOError` where others hold it, `OSError` where locks do not exist."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
