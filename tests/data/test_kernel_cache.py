"""Compiled code on the disk: outdated, damaged, or in no folder at all."""

import errno
import importlib.util
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from numba import config
from numba.core.caching import IndexDataCacheFile

from ffcv_train.data.kernels import compile_cache
from tests.support.photographs import ROOT

INNER = """
from ffcv_train.data.kernels.compile_cache import compiled

@compiled()
def inner(x):
    return x + {}
"""
OUTER = """
from inner import inner as add
from ffcv_train.data.kernels.compile_cache import compiled

@compiled()
def outer(x):
    return add(x)

print(outer(1), sum(outer.stats.cache_hits.values()))
"""


def run(folder: Path) -> list[int]:
    (folder / "outer.py").write_text(OUTER)
    os.utime(folder / "outer.py", (1_000_000_000, 1_000_000_000))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-c", "import outer"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


def test_a_changed_inner_function_is_compiled_into_the_outer_one(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(INNER.format(10))
    assert run(tmp_path) == [11, 0]
    assert run(tmp_path) == [11, 1]
    time.sleep(0.02)
    (tmp_path / "inner.py").write_text(INNER.format(200))
    assert run(tmp_path) == [201, 0]


class Program:
    """A program of one compiled function, started again and again in this process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "program.py"
        self.file.write_text(INNER.format(10))

    def start(self) -> list[int]:
        """What the function makes of 1, and whether it was found in a cache; the notes begin anew."""
        compile_cache._said.clear()
        spec = importlib.util.spec_from_file_location("program", self.file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return [module.inner(1), sum(module.inner.stats.cache_hits.values())]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "program").mkdir()
    return Program(tmp_path / "program")


@pytest.fixture
def temporary(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, where neither the program's folder nor home can be written, by root either."""
    (program.file.parent / "__pycache__").write_text("no folder")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize(("kind", "damage"), [("*.nbi", cut), ("*.nbc", cut), ("*.nbc", flip)])
def test_a_damaged_file_is_compiled_anew(program: Program, kind: str, damage: Callable[[bytes], bytes]) -> None:
    assert [program.start(), program.start()] == [[11, 0], [11, 1]]
    (file,) = (program.file.parent / "__pycache__").glob(kind)
    file.write_bytes(damage(file.read_bytes()))
    assert [program.start(), program.start()] == [[11, 0], [11, 1]]


def test_without_a_folder_compiled_code_goes_to_a_private_one(
    program: Program, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private = temporary / f"ffcv_train-{os.getuid()}"
    for hits in (0, 1):
        monkeypatch.setattr(config, "CACHE_DIR", "")
        assert program.start() == [11, hits]
        said = capsys.readouterr().err
        assert said.startswith("note: neither") and str(private) in said and len(said.splitlines()) == 1
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_is_not_trusted(
    program: Program, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = temporary / f"ffcv_train-{os.getuid()}"
    private.mkdir()
    private.chmod(0o777)
    assert program.start() == [11, 0]
    assert list(private.iterdir()) == []
    said = capsys.readouterr().err
    assert said.startswith("note: no lasting folder") and len(said.splitlines()) == 1


def test_without_any_folder_the_code_runs_all_the_same(
    program: Program, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    assert program.start() == [11, 0]
    said = capsys.readouterr().err
    assert said.startswith("note: no folder for compiled code can be written") and len(said.splitlines()) == 1


def test_a_full_disk_costs_the_cache_alone(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", fill)
    assert program.start() == [11, 0]
    said = capsys.readouterr().err
    folder = program.file.parent / "__pycache__"
    assert said.startswith(f"note: compiled code cannot be kept in {folder}: No space left")
    assert len(said.splitlines()) == 1
