"""The file that a loader reads, which nobody may write to in the meantime.

A mapped file that is cut off kills the process that reads the missing part, by SIGBUS, and one that is written to gives
old bytes and new ones. A file that is replaced by another name's, as `ffcv-train write` and `mv` do, stays what it was
for those that have it open.
"""

import os
import weakref
from pathlib import Path

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import open_regular


class SourceFile:
    """An open file of `size` bytes. Raises `UserError` where it has another size by now."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        try:
            self.file = open_regular(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        self._close = weakref.finalize(self, self.file.close)
        self._written = os.fstat(self.file.fileno()).st_mtime_ns
        try:
            self.check()
        except UserError:
            self.close()
            raise

    def check(self) -> None:
        """Raise `UserError` where the file was cut off or written to since it was opened; takes a microsecond."""
        found = os.fstat(self.file.fileno())
        if found.st_size == self._size and found.st_mtime_ns == self._written:
            return
        what = f"has {found.st_size} bytes and had {self._size}" if found.st_size != self._size else "was written to"
        raise UserError(
            f"{self._path} {what} while it was being read; put a new file in its place by mv, never by writing into it "
            "(cp, rsync --inplace), and start again"
        )

    def close(self) -> None:
        """Close the file."""
        self._close()
