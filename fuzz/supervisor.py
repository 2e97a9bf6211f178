"""Runs the cases of a fuzzer in a child process; what kills or stops the child is counted, and the rest goes on."""

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Protocol

import psutil

_REPORT_SECONDS = 0.25
_START_SECONDS = 300.0
_MAX_FINDINGS = 100
_TRACE_CHARACTERS = 2000


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `result` is "image" or the kind of a clear error; `bad` says what must not happen, or ""."""

    result: str
    mutations: tuple[str, ...]
    bad: str = ""


class Fuzzer(Protocol):
    """Cases by number; the same number is the same case."""

    def run(self, case: int) -> Outcome:
        """Run a case."""
        ...

    def save(self, case: int, folder: Path) -> Path:
        """Write a case's input to a file in `folder`."""
        ...


@dataclass(frozen=True)
class Finding:
    """A case that must not happen: `kind` is crash, hang, exception or wrong; `file` holds its input."""

    case: int
    kind: str
    what: str
    file: str = ""


@dataclass
class Report:
    """Counts over cases; `slowest` is (milliseconds of computing, case)."""

    cases: int = 0
    results: Counter[str] = field(default_factory=Counter)
    mutations: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def add(self, other: "Report") -> None:
        """Take another's counts in."""
        self.cases += other.cases
        self.results += other.results
        self.mutations += other.mutations
        self.findings += other.findings
        self.slowest = max(self.slowest, other.slowest)


def supervise(
    make: Callable[[], Fuzzer],
    first: int,
    count: int,
    *,
    cpu_seconds: float,
    wall_seconds: float,
    save: Path,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Run the cases `first` … `first + count − 1` of the fuzzer that `make` makes (picklable).

    A case is stopped after `cpu_seconds` of computing or `wall_seconds` on the clock. Inputs of findings go to `save`.
    Ends early after 100 findings.
    """
    report, skipped = Report(), set[int]()
    start = time.monotonic()
    done = first
    while done < first + count and len(report.findings) < _MAX_FINDINGS:
        known = len(report.findings)
        done, fatal = _run_child(make, done, first + count, skipped, cpu_seconds, wall_seconds, report, progress, start)
        if fatal is not None:
            skipped.add(fatal.case)
            report.findings.append(fatal)
            report.cases += 1
        if len(report.findings) > known:
            save.mkdir(parents=True, exist_ok=True)
            fuzzer = make()
            for i in range(known, len(report.findings)):
                old = report.findings[i]
                report.findings[i] = Finding(old.case, old.kind, old.what, str(fuzzer.save(old.case, save)))
    report.seconds = time.monotonic() - start
    return report


def _run_child(
    make: Callable[[], Fuzzer],
    first: int,
    end: int,
    skipped: set[int],
    cpu_seconds: float,
    wall_seconds: float,
    report: Report,
    progress: Callable[[Report], None],
    start: float,
) -> tuple[int, Finding | None]:
    """One child's life: (the first case that it did not report, what ended it before its work was done)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    current: Any = RawArray("d", [-1.0, time.monotonic()])
    done = first
    with tempfile.NamedTemporaryFile() as errors:
        arguments = (theirs, errors.name, current, make, first, end, frozenset(skipped))
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        clock = _CaseClock(process.pid, current)
        try:
            while True:
                if ours.poll(_REPORT_SECONDS):
                    try:
                        part, done = ours.recv()
                    except EOFError:
                        break
                    report.add(part)
                    report.seconds = time.monotonic() - start
                    progress(report)
                    if len(report.findings) >= _MAX_FINDINGS:
                        return done, None
                elif (stuck := clock.stuck(cpu_seconds, wall_seconds)) is not None:
                    return done, Finding(stuck, "hang", f"no end after {clock.describe()}")
            process.join()
            if process.exitcode == 0:
                return done, None
            how = _ending(process.exitcode or 0)
            trace = errors.read().decode(errors="replace").strip()[-_TRACE_CHARACTERS:]
            if current[0] < 0:
                raise RuntimeError(f"the child process did not start ({how}):\n{trace}")
            return done, Finding(int(current[0]), "crash", f"{how}; {trace}")
        finally:
            process.kill()
            process.join()
            ours.close()


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _work(
    connection: Connection,
    errors: str,
    current: Any,
    make: Callable[[], Fuzzer],
    first: int,
    end: int,
    skipped: frozenset[int],
) -> None:
    """The child's life: cases in order, counts to the parent several times a second."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)  # the C libraries' messages, and the trace of a crash
    faulthandler.enable()
    fuzzer = make()
    part, sent = Report(), time.monotonic()
    for case in range(first, end):
        if case not in skipped:
            current[0], current[1] = case, time.monotonic()
            begin = time.process_time()
            _count(part, case, fuzzer)
            part.slowest = max(part.slowest, (1000 * (time.process_time() - begin), case))
        if time.monotonic() - sent > _REPORT_SECONDS or case == end - 1:
            connection.send((part, case + 1))
            os.truncate(errors, 0)
            part, sent = Report(), time.monotonic()


def _count(part: Report, case: int, fuzzer: Fuzzer) -> None:
    part.cases += 1
    try:
        outcome = fuzzer.run(case)
    except Exception:
        part.results["exception"] += 1
        part.findings.append(Finding(case, "exception", traceback.format_exc()[-_TRACE_CHARACTERS:]))
        return
    part.results["wrong" if outcome.bad else outcome.result] += 1
    for mutation in outcome.mutations:
        part.mutations[mutation, outcome.result] += 1
    if outcome.bad:
        part.findings.append(Finding(case, "wrong", outcome.bad))


class _CaseClock:
    """How long the child has been at its present case."""

    def __init__(self, pid: int | None, current: Any) -> None:
        self._process = psutil.Process(pid)
        self._current = current
        self._seen = (-2.0, 0.0)
        self._cpu_before = self._cpu = self._wall = 0.0

    def stuck(self, cpu_seconds: float, wall_seconds: float) -> int | None:
        """The case that takes longer than it may, if any."""
        case, since = self._current
        try:
            times = self._process.cpu_times()
        except psutil.NoSuchProcess:
            return None
        cpu = times.user + times.system
        if (case, since) != self._seen:
            self._seen, self._cpu_before = (case, since), cpu
        self._cpu, self._wall = cpu - self._cpu_before, time.monotonic() - since
        if case < 0:
            if self._wall > _START_SECONDS:
                raise RuntimeError("the child process did not start in time")
            return None
        return int(case) if self._cpu > cpu_seconds or self._wall > wall_seconds else None

    def describe(self) -> str:
        """Both times in words."""
        return f"{self._cpu:.1f} s of computing, {self._wall:.1f} s in all"
