"""Files are files, and written whole or not at all."""

import errno
import os
import socket
from pathlib import Path

import pytest

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import open_regular, parse_json, replace_file, whole_file
from tests.support.limits import no_hang


def test_text_that_is_nested_too_deeply_is_no_json() -> None:
    assert parse_json('{"a": [1, "b"]}') == {"a": [1, "b"]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "{"):
        with pytest.raises(ValueError):
            parse_json(text)


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


@pytest.mark.parametrize("one_writer", [False, True])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, one_writer: bool) -> None:
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        with whole_file(path, one_writer=one_writer) as temporary:
            temporary.write_bytes(b"old")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ValueError), whole_file(path, one_writer=one_writer) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise ValueError
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    with whole_file(path, keep=tmp_path / "before", one_writer=one_writer) as temporary:
        temporary.write_bytes(b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"new", "before": b"old"}


def test_content_is_on_the_disk_before_the_name_and_a_disk_that_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "file", []
    path.write_bytes(b"old")

    def sync(descriptor: int) -> None:
        done.append((Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".file."), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", sync)
    replace_file(path, b"new")
    assert done == [(True, b"old"), (False, b"new")]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device"):
        replace_file(path, b"newer")
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_overwritten_where_there_is_but_one(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of a longer file")
    with whole_file(tmp_path / "file", one_writer=True) as temporary:
        assert not temporary.read_bytes()
        temporary.write_bytes(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_a_disk_that_becomes_read_only_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfinished file cannot be removed there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    replace_file(tmp_path / "file", b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"cannot write .*file: Read-only file system"):
        replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
