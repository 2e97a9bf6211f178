"""Compiled functions and numba's disk cache of them: honest about what is in it, harmless where it cannot be used.

numba alone refuses to import a program that may write nowhere beside it or in the home folder, trusts the bytes of its
cache, and goes by the file that a function stands in, not by what it compiled in from others.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

_DIGEST_BYTES = hashlib.sha256().digest_size
_said: list[str] = []


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(**options)` with a disk cache in numba's folder, else in a private one, else without, and a note."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        for prepare in (_numbas_folder, _private_folder, _unshared_folder):
            try:
                prepare()
                dispatcher._cache = _Cache(function)
                break
            except (OSError, RuntimeError):  # "no locator available"
                continue
        else:
            _note("no folder for compiled code can be written, which is compiled anew at each start")
        return dispatcher

    return decorate


@functools.cache
def _stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes whenever one of the Python files there does."""
    found = ((file.name, file.stat()) for file in sorted(folder.glob("*.py")))
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)


class _Cache(FunctionCache):
    """numba's cache of one function, but that a full disk is a note, and a change of any file beside the function's own
    makes it outdated: what is compiled holds what it calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _stamp_of(Path(function.__code__.co_filename).parent))
        self._cache_file = _CheckedFiles(self.cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            reason = error.strerror or error
            _note(f"compiled code cannot be kept in {self.cache_path}: {reason}; it is compiled anew at each start")


class _CheckedFiles(IndexDataCacheFile):
    """numba's files of one function with a SHA-256 before the code; what cannot be read counts as not there."""

    def _load_index(self) -> dict[Any, str]:
        try:
            return super()._load_index()
        except Exception:
            _remove(self._index_path)
            return {}

    def _load_data(self, name: str) -> Any:
        path = Path(self._data_path(name))
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            _remove(path)
            raise FileNotFoundError(path)  # which numba takes for: not compiled yet
        return pickle.loads(content[_DIGEST_BYTES:])

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)


def _numbas_folder() -> None:
    """Where numba looks by itself."""


def _private_folder() -> None:
    """A folder of this user's for temporary files, from which nobody else's code is ever loaded."""
    folder = Path(tempfile.gettempdir()) / f"ffcv_train-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    _use(str(folder))
    _note(f"neither {Path(__file__).parent} nor the home folder can be written; compiled code goes to {folder}")


def _unshared_folder() -> None:
    folder = tempfile.mkdtemp(prefix="ffcv_train-")
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    _use(folder)
    _note(f"no lasting folder for compiled code can be written; it is compiled anew at each start, into {folder}")


def _use(folder: str) -> None:
    config.CACHE_DIR = folder  # type: ignore[attr-defined]


def _remove(path: str | Path) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _note(sentence: str) -> None:
    """Say it once, whatever the number of functions and ranks."""
    if not _said and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"note: {sentence}", file=sys.stderr)
    _said.append(sentence)
