"""Files are files: nothing that would wait for a writer, or never end, is read as one."""

import os
import socket
from pathlib import Path

import pytest

from ffcv_train.system.files import open_regular
from tests.support.limits import no_hang


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.readall() == b"content"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    others = {
        tmp_path / "pipe": "named pipe",
        tmp_path / "loop": "named pipe",
        tmp_path: "folder",
        Path("/dev/zero"): "device",
        tmp_path / "socket": "No such device",  # says the system itself
        tmp_path / "none": "No such file",
    }
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path, what in others.items():
        with no_hang(), pytest.raises(OSError, match=what):
            open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
