"""Who waits for whom among ranks, since when, and when that is in vain."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ffcv_train.system import watch as watch_module
from ffcv_train.system.watch import Report, Watch, watched
from tests.support.photographs import ROOT
from tests.support.runs import free_port


class Ranks:
    """What rank 0 of four knows, at times of a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watch_module.time, "monotonic", lambda: self.now)
        self.watch = Watch(0, 4)
        self.reports = {rank: self.report(f"host{rank}") for rank in (1, 2, 3)}

    def report(self, host: str, **more: Any) -> Report:
        values = {"count": 7, "beats": 9, "alive": 1, "what": "step 7", "since": "12:00:00", "host": host}
        return Report(**{**values, "machine": host, "process": 1, **more})

    def change(self, rank: int, **more: Any) -> None:
        self.reports[rank] = Report(**{**self.reports[rank].__dict__, **more})

    def move(self, what: str = "step 7", **how: Any) -> None:
        """Rank 0 comes to its seventh place, where it waits."""
        for _ in range(7 - self.watch.own.count):
            self.watch.move(self.now, what, **{"meets": True, "waits": True, **how})

    def spend(self, seconds: float, silent: tuple[int, ...] = ()) -> list[str]:
        """Let time pass, in which all but `silent` ranks report; what rank 0 says, until it ends."""
        said = []
        for _ in range(int(seconds)):
            self.now += 1
            for rank in self.reports:
                if rank not in silent:
                    self.change(rank, alive=self.reports[rank].alive + 1)
            if self.watch.looks(self.now):
                self.watch.hear(self.reports, self.now)
            else:
                self.watch.hear({}, self.now)
            verdict = self.watch.judge(self.now)
            if verdict is not None:
                said.append(("END " if verdict.ends else "") + verdict.sentence)
                if verdict.ends:
                    break
        return said


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(monkeypatch)


def test_a_rank_that_others_wait_for_is_named_after_a_minute_and_then_seldom(ranks: Ranks) -> None:
    ranks.move()
    ranks.change(2, count=6, what="step 7, which waits for its batch")
    assert ranks.spend(59) == []
    said = ranks.spend(250)
    assert len(said) == 3, "after 1, 2 and 4 minutes"
    assert said[0].startswith("rank 0 has been at step 7 since ")
    assert said[0].endswith(
        "where it waits for rank 2 on host2, which has been at step 7, which waits for its batch since 12:00:00"
    )


def test_one_rank_speaks_for_all_that_wait(ranks: Ranks) -> None:
    ranks.watch.rank = 1
    ranks.reports[0] = ranks.reports.pop(1)
    ranks.move()
    ranks.change(2, count=6)
    assert ranks.spend(100) == []


def test_a_rank_of_which_nothing_is_heard_is_given_up_in_the_end(ranks: Ranks) -> None:
    ranks.move()
    said = ranks.spend(700, silent=(3,))
    assert "waits for rank 3 on host3, of which nothing has been heard for" in said[0]
    assert said[-1].startswith("END ") and "in vain for rank 3 on host3" in said[-1]


def test_all_ranks_at_one_place_wait_for_nobody(ranks: Ranks) -> None:
    ranks.move()
    said = ranks.spend(100)
    assert len(said) == 1 and said[0].endswith("and so has every other rank")


@pytest.mark.parametrize("reason", ["sample 7 is damaged", None])
def test_a_rank_that_has_ended_ends_those_that_wait_for_it(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    ranks.move()
    assert ranks.spend(4) == []
    if reason is None:  # killed on the same machine
        monkeypatch.setattr(watch_module, "_is_gone", lambda process: process == 99)
        ranks.change(1, machine=ranks.watch.own.machine, process=99)
    else:
        ranks.change(1, ended=reason)
    (said,) = ranks.spend(10)
    assert said.endswith(f"in vain for rank 1 on host1, which has ended ({reason or 'killed, or crashed'})")
    assert said.startswith("END ")


def test_nobody_is_ended_who_writes_a_file_or_whose_others_ended_well(ranks: Ranks) -> None:
    ranks.move(waits=False)
    ranks.change(1, ended="sample 7 is damaged")
    assert not any(said.startswith("END") for said in ranks.spend(300))
    ranks.watch.move(ranks.now, "a sum", meets=True, waits=True)
    for rank in (1, 2, 3):
        ranks.change(rank, ended="", count=8)
    assert not any(said.startswith("END") for said in ranks.spend(300))


def test_a_signal_ends_a_wait_that_does_not_move(ranks: Ranks) -> None:
    ranks.move()
    ranks.change(1, count=6)
    assert ranks.spend(8) == []
    ranks.watch.signalled(signal.SIGTERM, ranks.now)
    ranks.watch.signalled(signal.SIGINT, ranks.now + 5)
    start = ranks.now
    (said,) = ranks.spend(100)
    assert 10 <= ranks.now - start <= 15 and said.startswith("END ")
    assert "got SIGTERM and waits in vain for rank 1 on host1, which has been at step 7 since 12:00:00" in said


def test_a_signal_does_not_end_a_wait_for_one_that_moves(ranks: Ranks) -> None:
    """As rank 1 does, which has more of the validation to do."""
    ranks.move()
    ranks.change(1, count=6)
    ranks.watch.signalled(signal.SIGTERM, ranks.now)
    for beats in range(10, 30):
        ranks.change(1, beats=beats)
        assert not any(said.startswith("END") for said in ranks.spend(8))


def test_steps_that_take_long_are_waited_for_longer(ranks: Ranks) -> None:
    ranks.watch.move(ranks.now, "step 6", meets=True, waits=True)
    ranks.now += 40
    ranks.move()
    ranks.change(1, count=6)
    ranks.watch.signalled(signal.SIGTERM, ranks.now)
    assert not any(said.startswith("END") for said in ranks.spend(79))
    assert ranks.spend(20)[-1].startswith("END")


def test_a_store_that_does_not_answer_is_said_and_in_the_end_given_up(ranks: Ranks) -> None:
    ranks.move()
    said = []
    for _ in range(200):
        ranks.now += 1
        verdict = ranks.watch.judge(ranks.now)
        said += [(verdict.ends, verdict.sentence)] if verdict is not None else []
    assert "has not answered for 30 s: its host has ended" in said[0][1] and said[0][0]


PROGRAM = """
import sys, time, torch
from ffcv_train.cli.main import run_main
from ffcv_train.system import watch
from ffcv_train.system.distributed import all_reduce_sum, process_group
from ffcv_train.system.signals import StopRequest
watch._LOOK_SECONDS, watch._PATIENCE_SECONDS, watch._SAY_SECONDS, watch._SILENT_SECONDS = 0.5, 2, 3, 2
watch._ROUND_SECONDS = 0.2
def main():
    with process_group("cpu") as process, StopRequest():
        print("met", flush=True)
        for _ in range(100_000):
            all_reduce_sum(torch.ones(1))
            watch.at("its step", meets=True, waits=False)
            if process.rank == 1:
                time.sleep(0.2)
run_main(main)
"""


def start(tmp_path: Path) -> list[subprocess.Popen]:
    (tmp_path / "program.py").write_text(PROGRAM)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(tmp_path / "program.py")]
        environment = os.environ | where | own
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    for process in ranks:
        assert process.stdout is not None and process.stdout.readline() == "met\n"
    return ranks


def test_a_waiting_rank_says_so_and_acts_on_sigterm_within_gloo(tmp_path: Path) -> None:
    waiting, stopped = start(tmp_path)
    try:
        stopped.send_signal(signal.SIGSTOP)
        assert waiting.stderr is not None
        assert any("where it waits for rank 1 on" in line for line in waiting.stderr)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=240) == 128 + signal.SIGTERM
        said = waiting.stderr.read()
        assert "got SIGTERM and waits in vain for rank 1 on" in said and "Traceback" not in said
    finally:
        for process in (waiting, stopped):
            process.kill()
            process.communicate()


def test_a_rank_that_is_killed_ends_the_other_with_a_sentence(tmp_path: Path) -> None:
    survivor, victim = start(tmp_path)
    victim.kill()
    victim.communicate()
    said = survivor.communicate(timeout=240)[1]
    assert survivor.returncode == 2, said
    # It may have waited for the other one before that, on a slow machine.
    (error,) = (line for line in said.splitlines() if not line.startswith("note: "))
    assert error.startswith("error: rank 0") and "rank 1 on" in error
    assert "which has ended (killed, or crashed)" in error
    assert "--training.resume=auto continues from the last checkpoint" in error


def test_a_watch_that_is_left_keeps_nothing_open() -> None:
    with watched(dist.HashStore(), 0, 2):
        thread = watch_module._current
        judge = next(thread for thread in threading.enumerate() if thread.name == "_judging")
    assert thread is not None
    judge.join(30)
    assert (thread._woken.fileno(), thread._wakes.fileno()) == (-1, -1)
