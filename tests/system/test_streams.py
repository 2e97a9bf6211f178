"""Commands that were started with closed streams, or whose output meets a full disk."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.photographs import ROOT

PROGRAM = """
from ffcv_train.cli.main import run_main
from ffcv_train.system.errors import UserError
def main():
    import pathlib, sys
    with pathlib.Path(sys.argv[1]).open("w") as file:
        file.write("content")
        file.flush()
        print("said")
        print("and said", file=sys.stderr)
    if len(sys.argv) > 2:
        raise UserError("wrong")
run_main(main)
"""


def run(how: str, *arguments: object) -> subprocess.CompletedProcess:
    shell = ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("how", [">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path: Path, how: str) -> None:
    done = run(how, tmp_path / "file")
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "content")
    assert done.stderr == ("" if "2>&-" in how else "and said\n")
    done = run(how, tmp_path / "file", "wrong")
    assert (done.returncode, (tmp_path / "file").read_text()) == (2, "content")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full disk")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_under_stdout_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: bool
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    done = run(">/dev/full", tmp_path / "file")
    assert done.returncode == 2
    said = "error: cannot write to standard output: No space left on device; free space where it goes to\n"
    assert done.stderr == ("and said\n" if buffered else "") + said


def test_a_thread_that_does_not_start_is_a_sentence() -> None:
    program = (
        "from ffcv_train.cli.main import run_main\n"
        'def main(): raise RuntimeError("can\'t start new thread")\nrun_main(main)'
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: the system starts no more threads; raise the limit")
    assert len(done.stderr.splitlines()) == 1


def test_a_fatal_signal_says_where_it_came() -> None:
    """As SIGBUS does, where a mapped file is cut off in the moment that it is read."""
    program = (
        "import os, signal\nfrom ffcv_train.cli.main import run_main\n"
        "def main(): os.kill(os.getpid(), signal.SIGBUS)\nrun_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.startswith("Fatal Python error: Bus error") and "in main" in done.stderr
