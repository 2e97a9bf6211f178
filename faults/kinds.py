"""The kinds of fault: each does one trial, by a seeded generator, and says what did not hold."""

import contextlib
import errno
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tensorboard.summary.writer.record_writer import RecordWriter

from faults.runs import ALONE, EPOCHS, Run, bad_end, differs, lines, make_data, options, unreadable
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.system import files
from ffcv_train.training.runlog import RunLog
from ffcv_train.training.trainer import Trainer


@dataclass
class Bench:
    """What all trials share: a data set, and an uninterrupted run with its time."""

    root: Path
    data: Path
    reference: Path
    seconds: float
    points: int
    """how often the run reaches a place where `at_a_point` strikes"""

    @classmethod
    def set_up(cls, root: Path) -> "Bench":
        """Make the data and train the reference. Raises `RuntimeError` where that fails without a fault."""
        data = make_data(root / "data")
        reference = root / "reference"
        reference.mkdir()
        # What a run imports is imported once, before the processes fork.
        Trainer(load_config(RunConfig, options(data, root / "warm", "--training.epochs=2")), ALONE).fit()
        run = Run(options(data, reference), reference / "out.txt", lambda: at_a_point(0, lambda where: None))
        if bad_end(run, 0):
            raise RuntimeError(f"the run without a fault failed: {run.said()}")
        counted = [line for line in run.said().splitlines() if line.startswith("[point]")]
        return cls(root, data, reference, time.monotonic() - run.start, len(counted))


class Skipped(Exception):  # noqa: N818 (not an error)
    """Why this machine cannot try a kind of fault."""


Trial = Callable[[Bench, Path, random.Random], list[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of fault; `trials`: how often `make faults` tries it."""

    name: str
    promise: str
    trials: int
    trial: Trial


def at_a_point(number: int, strike: Callable[[str], object]) -> None:
    """In the process of a run: strike at the number-th place (from 1) where it writes for good; print each."""
    reached: list[str] = []

    def reach(where: str) -> None:
        reached.append(where)
        print(f"[point] {len(reached)} {where}", flush=True)
        if len(reached) == number:
            strike(where)

    fsync, replace, epoch, link = os.fsync, Path.replace, RunLog.epoch, files._link

    def sync(descriptor: int) -> None:
        what = "folder's names" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file's content"
        reach(f"before a {what} go to the disk")
        fsync(descriptor)

    def rename(self: Path, target: Any) -> Path:
        reach(f"before {Path(target).name} gets its name")
        done = replace(self, target)
        reach(f"after {Path(target).name} has its name")
        return done

    def log(self: RunLog, record: Any) -> None:
        reach("before a line of the log")
        epoch(self, record)
        reach("after a line of the log")

    def keep(path: Path, name: Path) -> None:
        reach(f"before {name.name} is kept")
        link(path, name)

    os.fsync, Path.replace, RunLog.epoch = sync, rename, log  # type: ignore[method-assign, assignment]
    files._link = keep


def resumed(bench: Bench, folder: Path, *more: str, kind: str = "beton") -> list[str]:
    """Resume without a fault; what is wrong with how it ends."""
    run = Run(options(bench.data, folder, *more, kind=kind), folder / "resumed.txt")
    return bad_end(run, 0) or differs(folder, bench.reference)


def signalled(number: signal.Signals) -> Trial:
    """The signal comes at a random moment."""

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        run = Run(options(bench.data, folder), folder / "out.txt")
        run.wait(seconds=draw.uniform(0, bench.seconds))
        run.send(number)
        # Before the first step a signal ends the process as it ends any other.
        wrong = bad_end(run, 0, -number, 128 + number)
        return wrong or unreadable(folder) or resumed(bench, folder)

    return trial


def killed_at_a_point(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """SIGKILL at a random place where something is written for good."""
    number = draw.randint(1, bench.points)
    strike = lambda where: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    run = Run(options(bench.data, folder), folder / "out.txt", lambda: at_a_point(number, strike))
    return bad_end(run, -signal.SIGKILL) or unreadable(folder) or resumed(bench, folder)


def failing_disk(code: int) -> Trial:
    """The disk refuses at a random place where something is written for good."""

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        number = draw.randint(1, bench.points)

        def strike(where: str) -> None:
            # Elsewhere there is nothing to be said, for nothing is lost.
            if where.startswith("before") and not any(word in where for word in ("previous", "line", "folder")):
                print("[struck]", flush=True)
                raise OSError(code, os.strerror(code))

        run = Run(options(bench.data, folder), folder / "out.txt", lambda: at_a_point(number, strike))
        wrong = bad_end(run, 0, 2)
        if "[struck]" in run.said() and run.poll() == 0:
            wrong.append("nothing was said")
        return wrong or unreadable(folder) or resumed(bench, folder)

    return trial


def full_under_tensorboard(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """The disk is full for TensorBoard's events alone: the run goes on."""
    first, written = draw.randint(1, EPOCHS), []

    def before() -> None:
        write = RecordWriter.write

        def fill(self: RecordWriter, content: bytes) -> None:
            written.append(content)
            if len(written) > first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, content)

        RecordWriter.write = fill

    run = Run(options(bench.data, folder), folder / "out.txt", before)
    said = [] if "goes on without" in (run.end(), run.said())[1] else ["no note"]
    return bad_end(run, 0) or said or differs(folder, bench.reference)


def data_changes(change: Callable[[Path], object], ends: bool, *more: str) -> Trial:
    """After the first epoch something happens to the training set."""

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        data = folder / "data"
        data.mkdir()
        for path in bench.data.glob("*.beton*"):
            shutil.copy(path, data / path.name)
        endless = [] if not ends else ["--training.epochs=4000", "--validation.every=4000"]
        run = Run(options(data, folder, *more, *endless), folder / "out.txt")
        run.wait(lambda: lines(folder) >= 1)
        change(data / "train.beton")
        return bad_end(run, 2 if ends else 0) or unreadable(folder)

    return trial


def cut_off(path: Path) -> None:
    """Take a quarter of the file away, at its end."""
    os.truncate(path, path.stat().st_size * 3 // 4)


def write_into(path: Path) -> None:
    """Write other bytes into the file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"other")


def replace(path: Path) -> None:
    """Put another file in its place."""
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


def worker_struck(number: signal.Signals, asked: bool) -> Trial:
    """A worker process that reads images gets a signal; where the run is `asked` to stop, it does."""

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        more = ("--training.epochs=4000", "--validation.every=4000")
        run = Run(options(bench.data, folder, *more, kind="folder"), folder / "out.txt")
        run.wait(lambda: lines(folder) >= 1 + draw.randint(0, 2))
        workers = psutil.Process(run.process).children()
        if not workers:
            return ["no worker was there"]
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(workers).send_signal(number)
        if asked:
            time.sleep(1)
            run.send(signal.SIGTERM)
        wrong = bad_end(run, 128 + signal.SIGTERM if asked else 2)
        left = psutil.wait_procs(workers, timeout=30)[1]
        return wrong + [f"{len(left)} workers are left"] * bool(left) or unreadable(folder)

    return trial


def workers_do_not_start(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """Too few open files are allowed for the workers."""
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))  # noqa: E731
    more = ("--data.num_workers=4", "--logging.tensorboard=0")
    run = Run(options(bench.data, folder, *more, kind="folder"), folder / "out.txt", limit)
    return bad_end(run, 2)


_RESUMED = "a run continues from any moment, with bit-equal weights"
_SENTENCE = "what goes wrong is said in a sentence, and the last checkpoint stays"
_NO_HANG = "nothing waits for ever"

KINDS = [
    Kind("SIGKILL at a random moment", _RESUMED, 8, signalled(signal.SIGKILL)),
    Kind("SIGTERM at a random moment", _RESUMED, 4, signalled(signal.SIGTERM)),
    Kind("Ctrl-C at a random moment", _RESUMED, 4, signalled(signal.SIGINT)),
    Kind("SIGHUP at a random moment", _RESUMED, 2, signalled(signal.SIGHUP)),
    Kind("SIGKILL where files are written", _RESUMED, 10, killed_at_a_point),
    Kind("full disk where files are written", _SENTENCE, 6, failing_disk(errno.ENOSPC)),
    Kind("I/O error where files are written", _SENTENCE, 4, failing_disk(errno.EIO)),
    Kind("disk full for TensorBoard alone", "a log never costs the run", 2, full_under_tensorboard),
    Kind(".beton cut off, mapped", _SENTENCE, 3, data_changes(cut_off, True)),
    Kind(".beton cut off, read", _SENTENCE, 2, data_changes(cut_off, True, "--data.in_memory=0")),
    Kind(".beton written into", _SENTENCE, 2, data_changes(write_into, True)),
    Kind(".beton replaced", "an open data set stays what it was", 2, data_changes(replace, False)),
    Kind("worker killed", _NO_HANG, 2, worker_struck(signal.SIGKILL, False)),
    Kind("worker stopped, then SIGTERM", _NO_HANG, 2, worker_struck(signal.SIGSTOP, True)),
    Kind("workers do not start", _NO_HANG, 2, workers_do_not_start),
]
