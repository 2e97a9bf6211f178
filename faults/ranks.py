"""Kinds of fault that need several ranks on one host."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from faults.kinds import Bench, Kind
from faults.runs import PATIENCE, differs, lines, options, unreadable

ROOT = Path(__file__).resolve().parent.parent
RANKS = ("--training.batch_size=8", "--training.epochs=6")
_ENDLESS = ("--training.epochs=4000", "--validation.every=4000")


class Launcher:
    """Torchrun at work, with its output in a file; `within`: a command that starts it, `program`: what it starts."""

    def __init__(
        self,
        folder: Path,
        name: str,
        flags: Sequence[str],
        arguments: Sequence[str],
        *within: str,
        program: str = "train_imagenet.py",
    ) -> None:
        self.log = folder / f"{name}.txt"
        self._program = program
        command = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.2", *flags]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [*within, *command, program, *arguments],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if self._trains(child)]
        return []

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> int | None:
        """The exit status, or None where `until()` came true before it, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and not until() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.process.poll()

    def kill(self) -> None:
        """Kill it with all that it started."""
        ranks = self.ranks()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        self.process.wait()

    def said(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace")

    def _trains(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            return any(word.endswith(self._program) for word in words) and "torch.distributed.run" not in words
        return False


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def launched(*launchers: Launcher) -> Iterator[None]:
    try:
        yield
    finally:
        for launcher in launchers:
            launcher.kill()


def undisturbed(bench: Bench) -> Path:
    """The folder of a run of two ranks to which nothing happens; it runs once. Raises `RuntimeError` where it fails."""
    folder = bench.root / "ranks"
    if not folder.exists():
        folder.mkdir()
        flags = ["--nproc_per_node=2", f"--master_port={_port()}"]
        launcher = Launcher(folder, "torchrun", flags, options(bench.data, folder, *RANKS))
        with launched(launcher):
            if launcher.wait() != 0:
                raise RuntimeError(f"two ranks without a fault failed: {launcher.said()}")
    return folder


@contextlib.contextmanager
def _two_ranks(
    bench: Bench, folder: Path, flags: Sequence[str] = (), *more: str
) -> Iterator[tuple[Launcher, list[psutil.Process], list[str]]]:
    """Torchrun, its two ranks, which train, and what is wrong where there are not two; killed at the end."""
    where = ["--nproc_per_node=2", f"--master_port={_port()}", *flags]
    launcher = Launcher(folder, "torchrun", where, options(bench.data, folder, *RANKS, *more))
    with launched(launcher):
        launcher.wait(lambda: lines(folder) >= 1)
        ranks = launcher.ranks()
        yield launcher, ranks, [] if len(ranks) == 2 else [f"{len(ranks)} ranks started: {launcher.said()[-300:]}"]


def a_rank_is_killed(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """One of two ranks gets SIGKILL: the other ends with a sentence, before torchrun would kill it."""
    with _two_ranks(bench, folder, [], *_ENDLESS) as (launcher, ranks, wrong):
        if wrong:
            return wrong
        draw.choice(ranks).kill()
        if launcher.wait() is None:
            return ["hangs"]
        left = psutil.wait_procs(ranks, timeout=30)[1]
        said = [] if "has lost rank" in launcher.said() or "in vain for rank" in launcher.said() else ["no sentence"]
        return said + [f"{len(left)} ranks are left"] * bool(left) + unreadable(folder)


def restarts(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """With --max-restarts the ranks start again and finish the run."""
    with _two_ranks(bench, folder, ["--max-restarts=2"]) as (launcher, ranks, wrong):
        if wrong:
            return wrong
        draw.choice(ranks).kill()
        status = launcher.wait()
        wrong = [] if status == 0 else [f"status {status}: {launcher.said()[-300:]}"]
        return wrong or differs(folder, undisturbed(bench))


def the_agent_is_killed(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """Torchrun itself gets SIGKILL: its ranks stop and free the run."""
    with _two_ranks(bench, folder, [], *_ENDLESS) as (launcher, ranks, wrong):
        if wrong:
            return wrong
        launcher.process.kill()
        left = psutil.wait_procs(ranks, timeout=PATIENCE)[1]
        for rank in left:
            rank.kill()
        return [f"{len(left)} ranks are left"] * bool(left) + unreadable(folder)


CARRIES_ON = "torchrun --max-restarts carries on, to bit-equal weights"

KINDS = [
    Kind("rank killed", "a rank that waits for another ends with a sentence", 1, a_rank_is_killed),
    Kind("rank killed, torchrun restarts", CARRIES_ON, 1, restarts),
    Kind("torchrun killed", "ranks end with their torchrun", 1, the_agent_is_killed),
]
