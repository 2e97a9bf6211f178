"""Records as strict JSON; files written whole or not at all; files opened only where they are files."""

import contextlib
import json
import math
import numbers
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any

from ffcv_train.system.errors import UserError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path) -> FileIO:
    """Open `path` for unbuffered reading where it is a regular file, links followed.

    Raises `OSError`, also for anything else: opening a named pipe would wait for a writer for ever, and a device may
    have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(f"it is {_KINDS.get(kind, 'something else')}, not a file")
    return FileIO(descriptor)


def expand_path(path: str) -> str:
    """`path` with `~` and environment variables replaced, which a shell leaves alone within `--option=~/file`."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (a Path would lose a slash at the end)


def to_plain(value: Any) -> Any:
    """`value` as what strict JSON can say: mappings, lists, texts, booleans, finite numbers, None.

    Numbers, arrays and tensors of NumPy and torch become Python's; NaN and infinities become None; anything else, a
    path say, becomes its text.
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, for texts of others: what is nested too deeply for it is a `ValueError` as well."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_json_line(content: Any) -> str:
    """`to_plain(content)` as one line of JSON, with its newline."""
    return json.dumps(to_plain(content), allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: str | Path, content: Any) -> None:
    """Write `to_plain(content)` to `path`, whole or not at all. Raises `UserError` where it cannot be written."""
    replace_text(path, json.dumps(to_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def replace_text(path: str | Path, text: str) -> None:
    """`replace_file` with a text."""
    replace_file(path, text.encode())


def replace_file(path: str | Path, content: bytes) -> None:
    """Make `content` that of `path`, as `whole_file` does."""
    with whole_file(path) as temporary, disk_errors(path):
        temporary.write_bytes(content)


@contextlib.contextmanager
def whole_file(path: str | Path, *, keep: Path | None = None, one_writer: bool = False) -> Iterator[Path]:
    """A new, empty file beside `path` to write to; it takes that name, on the disk, when the context ends.

    On an exception it disappears. A crash at any moment leaves the old file or the new one. `keep` is the name under
    which the old file stays, where the file system has hard links. With `one_writer` the new file's first name is
    always the same, so that programs killed again and again leave one unfinished file at most; two that write to
    `path` at a time would disturb each other. Raises `UserError` where the disk refuses.
    """
    path = Path(path)
    with disk_errors(path):
        if one_writer:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(b"")
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            os.close(handle)
            temporary = Path(name)
    try:
        yield temporary
        with disk_errors(path):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~umask())  # mkstemp's files are the owner's alone
            if keep is not None:
                _link(path, keep)
            temporary.replace(path)
        # The file is in its place; some file systems know no more of folders.
        with contextlib.suppress(OSError):
            sync_folder(path.parent)
    finally:
        # It is gone by now, or the disk has become read-only.
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_file(file: IO[Any]) -> None:
    """Put what was written to an open file on the disk. Raises `OSError`."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk. Raises `OSError`, also where the file system cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """The rights that new files and folders of this process lack."""
    # There is no asking without setting.
    found = os.umask(0)
    os.umask(found)
    return found


def _link(path: Path, name: Path) -> None:
    temporary = name.with_name(f".{name.name}.tmp")
    # Not every file system has links, and there is not always a file yet.
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(name)


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; check the path, its rights and the free space") from None
