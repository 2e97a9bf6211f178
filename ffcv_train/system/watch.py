"""Ranks that wait for each other: who waits for whom and since when, and an end with a sentence where it is in vain.

Between ranks a wait is a call of Gloo or NCCL, during which Python runs nothing in the main thread. So a thread keeps
watch: it tells the other ranks through the store how far this one is, looks how far they are where this one does not
move, and learns of signals from the file descriptor that the interpreter's own handler writes them to.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

_ROUND_SECONDS = 2.0
_LOOK_SECONDS = 5.0
"""A rank that has not moved for so long looks at the others"""
_SAY_SECONDS = 60.0
_SILENT_SECONDS = 20.0
_PATIENCE_SECONDS = 10.0
"""How long after a signal others may take to move on, at the least; launchers kill after half a minute"""
_GAPS = 20
"""Of so many moves the longest says how long one may take"""
_LOST_SECONDS = 600.0
"""After so long a rank of which nothing is heard is given up"""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Report:
    """How far a rank is, as it says itself."""

    count: int
    """how often it has come to a place where ranks meet; equal on all of them while they go together"""
    beats: int
    """how often it has got anything done"""
    alive: int
    """how often it has reported"""
    what: str
    since: str
    """what it does, and the time of day since when"""
    host: str
    machine: str
    process: int
    ended: str | None = None
    """why it ended; empty: as it should"""


@dataclass(frozen=True)
class Awaited:
    """A rank that others wait for."""

    rank: int
    why: str
    ended: bool
    unmoved: float
    silent: float
    """seconds for which it has been seen not to move, and not to report"""


@dataclass(frozen=True)
class Verdict:
    """What is to be said, and whether this rank ends."""

    sentence: str
    ends: bool


class Watch:
    """What one rank knows of itself and the others, and what follows. Times are of `time.monotonic`."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.own = Report(0, 0, 0, "its start", _clock(), socket.gethostname(), _machine(), os.getpid())
        self.waits = False
        self.signal: signal.Signals | None = None
        self._signalled = 0.0
        self._moved = self._heard = time.monotonic()
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._say_at = _SAY_SECONDS
        self._others: dict[int, tuple[Report, float, float]] = {}  # since when unmoved, since when silent

    def move(self, now: float, what: str | None, *, meets: bool, waits: bool | None) -> None:
        """Note that the main thread has come on."""
        self._gaps.append(now - self._moved)
        self._moved, self._say_at = now, _SAY_SECONDS
        own = self.own
        self.own = replace(own, count=own.count + meets, beats=own.beats + 1, what=what or own.what, since=_clock())
        if waits is not None:
            self.waits = waits
        if self._others:
            self._others = {}

    def signalled(self, number: signal.Signals, now: float) -> None:
        """Note the first signal that asks for an end."""
        if self.signal is None:
            self.signal, self._signalled = number, now

    def looks(self, now: float) -> bool:
        """Whether this rank has not moved for so long that it wants to know of the others."""
        return now - self._moved >= _LOOK_SECONDS

    def hear(self, reports: dict[int, Report], now: float) -> None:
        """Take the other ranks' last reports."""
        self._heard = now
        for rank, report in reports.items():
            before, unmoved, silent = self._others.get(rank, (None, now, now))
            if before is not None and (before.count, before.beats) != (report.count, report.beats):
                unmoved = now
            if before is not None and before.alive != report.alive:
                silent = now
            self._others[rank] = report, unmoved, silent

    def judge(self, now: float) -> Verdict | None:
        """What follows from all that."""
        stalled = now - self._moved
        if not self.looks(now):
            return None
        where = f"rank {self.rank} has been at {self.own.what} since {self.own.since}"
        awaited = self.awaited(now)
        patience = max(_PATIENCE_SECONDS, 2 * max(self._gaps, default=0.0))
        deaf = now - self._heard
        if self.waits:
            ended = [other for other in awaited if other.ended]
            if ended:
                return Verdict(f"{where}, where it waits in vain for {_list(ended)}", True)
            stuck = awaited and all(other.unmoved >= patience for other in awaited)
            if self.signal and stuck and min(stalled, now - self._signalled) >= patience:
                return Verdict(f"{where}, got {self.signal.name} and waits in vain for {_list(awaited)}", True)
            if any(other.silent >= _LOST_SECONDS for other in awaited):
                return Verdict(f"{where}, where it waits in vain for {_list(awaited)}", True)
            if deaf >= _SILENT_SECONDS and min(stalled, deaf) >= 3 * patience:
                return Verdict(f"{where}, and {_store()} has not answered for {deaf:.0f} s: its host has ended", True)
        if stalled < self._say_at:
            return None
        self._say_at = 2 * stalled
        if deaf >= _SILENT_SECONDS:
            return Verdict(f"{where}; {_store()} has not answered for {deaf:.0f} s", False)
        if awaited and self.rank == self._speaker(awaited):
            return Verdict(f"{where}, where it waits for {_list(awaited)}", False)
        if not awaited and self.rank == 0 and self._others:
            return Verdict(f"{where}, and so has every other rank", False)
        return None

    def awaited(self, now: float) -> list[Awaited]:
        """The ranks that have ended, report nothing, or are not as far as this one."""
        found = []
        for rank, (report, unmoved, silent) in sorted(dict(self._others).items()):
            if report.ended == "":
                continue
            place = f"rank {rank} on {report.host}"
            why = None
            ended = bool(report.ended) or (report.machine == self.own.machine and _is_gone(report.process))
            if ended:
                why = f"{place}, which has ended ({report.ended or 'killed, or crashed'})"
            elif now - silent >= _SILENT_SECONDS:
                why = f"{place}, of which nothing has been heard for {now - silent:.0f} s, last at {report.what}"
            elif report.count < self.own.count:
                why = f"{place}, which has been at {report.what} since {report.since}"
            if why is not None:
                found.append(Awaited(rank, why, ended, now - unmoved, now - silent))
        return found

    def _speaker(self, awaited: list[Awaited]) -> int:
        missing = {other.rank for other in awaited}
        return min(rank for rank in range(self.world_size) if rank not in missing)


class _Thread:
    """`Watch` at work: one thread that judges, and one that reports, which a lost host may keep waiting."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.watch = Watch(rank, world_size)
        self._store = store.clone()
        self._store.set_timeout(timedelta(seconds=_SILENT_SECONDS))
        self._over = threading.Event()
        self._alive = 0
        self._ended: str | None = None
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        self._report()
        for work in (self._reporting, self._judging):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        self._before = -1
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def leave(self, reason: str) -> None:
        """Tell the other ranks that this one ends, and why; empty: as it should."""
        if self._in_main:
            signal.set_wakeup_fd(self._before)
        self._over.set()
        with contextlib.suppress(OSError):  # closed by the judge, which had just looked
            self._wakes.send(b"\0")
        self._say_goodbye(reason)

    def _say_goodbye(self, reason: str) -> None:
        self._ended = " ".join(reason.split())[:200]
        with contextlib.suppress(RuntimeError):
            self._report()

    def _report(self) -> None:
        self._alive += 1
        report = replace(self.watch.own, alive=self._alive, ended=self._ended)
        self._store.set(_key(self.watch.rank), json.dumps(report.__dict__))

    def _reporting(self) -> None:
        while not self._over.wait(_ROUND_SECONDS):
            with contextlib.suppress(RuntimeError):  # the store's host is gone; the judge sees the silence
                self._report()
                if self.watch.looks(time.monotonic()):
                    self.look()
                else:
                    self.watch.hear({}, time.monotonic())

    def look(self) -> None:
        """Read how far the other ranks are. Raises `RuntimeError` where the store does not answer."""
        self.watch.hear(self._read(), time.monotonic())

    def _read(self) -> dict[int, Report]:
        others = [rank for rank in range(self.watch.world_size) if rank != self.watch.rank]
        there = [rank for rank in others if self._store.check([_key(rank)])]
        return {rank: Report(**json.loads(self._store.get(_key(rank)))) for rank in there}

    def _judging(self) -> None:
        with self._woken, self._wakes:
            self._judge()

    def _judge(self) -> None:
        while not self._over.is_set():
            select.select([self._woken], [], [], 1.0)
            with contextlib.suppress(BlockingIOError):
                for number in self._woken.recv(64):
                    if number in _SIGNALS:
                        self.watch.signalled(signal.Signals(number), time.monotonic())
            verdict = self.watch.judge(time.monotonic())
            if verdict is None or self._over.is_set():
                continue
            if verdict.ends:
                self._end(verdict.sentence)
            _say(f"note: {verdict.sentence}")

    def _end(self, sentence: str) -> NoReturn:
        last = "; what that one printed says why, and --training.resume=auto continues from the last checkpoint"
        _say(f"error: {sentence}{last}")
        threading.Thread(target=self._say_goodbye, args=(sentence,), daemon=True).start()
        time.sleep(0.5)  # no longer: nobody may be left who answers
        os._exit(2 if self.watch.signal is None else 128 + self.watch.signal)


_current: _Thread | None = None


@contextlib.contextmanager
def watched(store: dist.Store, rank: int, world_size: int) -> Iterator[None]:
    """A context in which this rank is watched; an exception that leaves it is told to the other ranks."""
    global _current
    if world_size == 1:
        yield
        return
    thread = _current = _Thread(store, rank, world_size)
    reason = ""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise
    except KeyboardInterrupt:
        reason = "interrupted"
        raise
    finally:
        thread.leave(reason)
        _current = None


def at(what: str | None = None, *, meets: bool = False, waits: bool | None = None) -> None:
    """Note that this rank has come on, to `what`; takes a microsecond, does nothing where it is alone.

    `meets`: at a place to which all ranks come, in the same order. `waits`: from here on this rank may be ended where
    others keep it waiting; not while it writes a file.
    """
    if _current is not None:
        _current.watch.move(time.monotonic(), what, meets=meets, waits=waits)


def others_that_ended(seconds: float = 3.0) -> str:
    """Which ranks have ended and why, as far as that comes to light within `seconds`; empty where it does not."""
    if _current is None:
        return ""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RuntimeError):
            _current.look()
        ended = [other for other in _current.watch.awaited(time.monotonic()) if other.ended]
        if ended or time.monotonic() > deadline:
            return _list(ended)
        time.sleep(0.1)


def _list(awaited: list[Awaited]) -> str:
    more = f", and {len(awaited) - 3} more" if len(awaited) > 3 else ""
    return "; ".join(other.why for other in awaited[:3]) + more


def _key(rank: int) -> str:
    return f"ffcv_train/watch/{rank}"


def _store() -> str:
    return f"the store of the ranks at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _machine() -> str:
    """Equal for processes that see each other's numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _is_gone(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return Path("/proc/self").exists()


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)
