"""Running a comparison: a process per run and device, stopped and continued without loss."""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ffcv_train.comparison.measure import is_measured
from ffcv_train.comparison.plan import ComparisonPlan, PlannedRun, devices, measure_command, train_command
from ffcv_train.system.environment import command_line
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, parse_json
from ffcv_train.system.progress import ProgressLine, duration
from ffcv_train.system.signals import StopRequest, end_with_parent

_POLL_SECONDS = 0.1
_TAIL_LINES = 15


@dataclass(frozen=True)
class FailedRun:
    """A run that ended without measures."""

    run: PlannedRun
    stage: str
    """train or measure"""
    status: int
    """Exit status; negative: the signal that ended it"""
    log: Path
    tail: str
    """The last lines that it printed"""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal ended the comparison; its runs wrote their checkpoints."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; continue with the same command:\n  {command_line()}")
        self.exit_status = 128 + number


@dataclass(frozen=True)
class _Slot:
    """Where one run at a time goes."""

    number: int
    device: str | None
    """CUDA_VISIBLE_DEVICES of its runs; None on a CPU"""
    cores: frozenset[int] = frozenset()
    """Which they may use; empty: all"""


@dataclass
class _Job:
    run: PlannedRun
    stage: str
    process: subprocess.Popen[Any]
    log: IO[bytes]
    log_start: int
    asked: bool = False


def is_finished(plan: ComparisonPlan, run: PlannedRun) -> bool:
    """Whether a run is trained and measured."""
    folder = plan.folder(run)
    return (folder / "final.pt").is_file() and is_measured(folder / "measures.json", plan.transfer, plan.suites)


def run_all(plan: ComparisonPlan, line: ProgressLine | None = None) -> list[FailedRun]:
    """Train and measure what is not finished; returns the runs that failed, the others go on without them.

    As many at a time as `plan.runs_per_device` says per GPU, or on a CPU. SIGINT, SIGTERM and SIGHUP stop the runs
    after their current step and raise `Interrupted`; a second Ctrl-C ends them at once. Raises `UserError`
    where another process runs the same comparison.
    """
    line = line or ProgressLine()
    todo = [run for run in plan.runs if not is_finished(plan, run)]
    kept = len(plan.runs) - len(todo)
    slots = slots_of(plan, len(todo))
    line.print(f"{len(plan.runs)} runs, {kept} finished before; {len(todo)} to go, {len(slots)} at a time")
    failures: list[FailedRun] = []
    jobs: dict[_Slot, _Job] = {}
    waiting = list(todo)
    watch = _Watch(plan, todo)
    with _only_one(plan.out), StopRequest() as stop, contextlib.closing(line):
        try:
            while jobs or (waiting and stop.signal is None):
                for slot in [slot for slot in slots if slot not in jobs]:
                    if waiting and stop.signal is None:
                        run = waiting.pop(0)
                        trained = (plan.folder(run) / "final.pt").is_file()
                        jobs[slot] = _start(plan, run, "measure" if trained else "train", slot)
                        line.print(f"{run.name}: {'measuring' if trained else 'training'}, {plan.log(run)}")
                time.sleep(_POLL_SECONDS)
                if stop.signal is not None:
                    _stop(jobs, line, stop.signal)
                for slot, job in list(jobs.items()):
                    status = job.process.poll()
                    if status is None:
                        continue
                    job.log.close()
                    del jobs[slot]
                    if stop.signal is not None:
                        continue
                    failure = _failure(plan, job, status)
                    if failure:
                        failures.append(failure)
                        line.print(describe_failure(failure))
                        watch.give_up(job.run)
                    elif job.stage == "train":
                        jobs[slot] = _start(plan, job.run, "measure", slot)
                    else:
                        line.print(f"{job.run.name}: done")
                watch.show(line, [job.run for job in jobs.values()])
        finally:
            for job in jobs.values():  # a second Ctrl-C, or a defect of ours
                _signal(job, signal.SIGKILL)
                job.process.wait()
                job.log.close()
    if stop.signal is not None:
        raise Interrupted(stop.signal)
    return failures


def describe_failure(failure: FailedRun) -> str:
    """A failure with the end of what it printed, in several lines."""
    tail = "\n".join(f"    {text}" for text in failure.tail.splitlines())
    how = f"with status {failure.status}" if failure.status >= 0 else f"by {signal.Signals(-failure.status).name}"
    return f"{failure.run.name}: failed to {failure.stage}, ended {how}; the end of {failure.log}:\n{tail}"


def slots_of(plan: ComparisonPlan, to_go: int) -> list[_Slot]:
    """The places in which runs go at the same time, one after the other on each device, in the order they are filled.

    There are no more than the runs `to_go`, so that these have all cores, but at least one.

    Where there are several, each has its own share of this process's cores: a run shares its cores among its own
    processes only, so that runs beside each other would each decode on all. Threads that the user has counted
    (data.num_workers), fewer cores than runs, and systems that bind no process to cores leave them all cores.
    """
    found = devices(plan.config)
    count = min(len(found) * plan.runs_per_device, max(1, to_go))
    free = [_Slot(number, found[number % len(found)]) for number in range(count)]
    if len(free) < 2 or plan.config.data.num_workers or not hasattr(os, "sched_setaffinity"):
        return free
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(free):
        return free
    bounds = [len(cores) * number // len(free) for number in range(len(free) + 1)]
    shares = [frozenset(cores[a:b]) for a, b in itertools.pairwise(bounds)]
    return [dataclasses.replace(slot, cores=share) for slot, share in zip(free, shares, strict=True)]


def _start(plan: ComparisonPlan, run: PlannedRun, stage: str, slot: _Slot) -> _Job:
    command = train_command(plan, run) if stage == "train" else measure_command(plan, run)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # what is imported here is imported there
    environment["PYTHONUNBUFFERED"] = "1"
    if slot.device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.device
    with disk_errors(plan.log(run)):
        log = plan.log(run).open("ab")
        start = log.tell()

    def set_up() -> None:
        end_with_parent()
        if slot.cores:
            os.sched_setaffinity(0, slot.cores)

    # A session of its own: Ctrl-C goes to this process alone, which then asks each run to stop, once.
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=set_up,
    )
    return _Job(run, stage, process, log, start)


def _stop(jobs: dict[_Slot, _Job], line: ProgressLine, number: signal.Signals) -> None:
    """Ask the running jobs to stop, each once."""
    for job in jobs.values():
        if not job.asked:
            how = "stops after its current step and writes its checkpoint" if job.stage == "train" else "stops"
            line.print(f"{number.name}: {job.run.name} {how}")
            job.asked = True
            _signal(job, signal.SIGTERM)


def _signal(job: _Job, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)


def _failure(plan: ComparisonPlan, job: _Job, status: int) -> FailedRun | None:
    folder = plan.folder(job.run)
    if job.stage == "train":
        done = (folder / "final.pt").is_file()
    else:
        done = is_measured(folder / "measures.json", plan.transfer, plan.suites)
    if status == 0 and done:
        return None
    content = plan.log(job.run).read_bytes()[job.log_start :].decode(errors="replace")
    tail = "\n".join(content.splitlines()[-_TAIL_LINES:])
    return FailedRun(job.run, job.stage, status, plan.log(job.run), tail)


class _Watch:
    """How far the comparison is, from the runs' own logs."""

    def __init__(self, plan: ComparisonPlan, todo: list[PlannedRun]) -> None:
        self._plan, self._todo = plan, list(todo)
        self._epochs = plan.config.training.epochs
        self._start, self._before = time.monotonic(), self._done()

    def give_up(self, run: PlannedRun) -> None:
        """Count a failed run as no work any more."""
        self._todo.remove(run)
        self._before = min(self._before, self._done())

    def show(self, line: ProgressLine, running: list[PlannedRun]) -> None:
        """Show epochs done of all, and when the comparison will be."""
        if not line.due() or not running:
            return
        done, total = self._done(), len(self._todo) * self._epochs
        parts = []
        for run in running:
            record = _last_record(self._plan.folder(run) / "log.jsonl")
            top_1 = record.get("top_1")
            parts.append(
                f"{run.name} epoch {record.get('epoch', -1) + 1}/{self._epochs}"
                + (f" top-1 {top_1:.2%}" if isinstance(top_1, float) else "")
            )
        if done > self._before:
            left = (time.monotonic() - self._start) / (done - self._before) * (total - done)
            parts.append(f"ETA {duration(left)}")
        line.show("epochs", done, total, "  ".join(parts))

    def _done(self) -> int:
        logs = (self._plan.folder(run) / "log.jsonl" for run in self._todo)
        return sum(_last_record(log).get("epoch", -1) + 1 for log in logs)


def _last_record(log: Path) -> dict[str, Any]:
    """The last whole line of a run's log, {} where there is none."""
    with contextlib.suppress(OSError):
        for text in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            with contextlib.suppress(ValueError):
                record = parse_json(text)
                if isinstance(record, dict):
                    return record
    return {}


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other processes from running the comparison in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process runs the comparison in {folder}; wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
