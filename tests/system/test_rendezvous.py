"""Ranks that torchrun started again meet each other, not what their predecessors left in the agent's store."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from ffcv_train.system import rendezvous
from ffcv_train.system.errors import UserError
from ffcv_train.system.rendezvous import agree_on_attempt, hosts_cannot_come_back
from tests.support.photographs import ROOT
from tests.support.runs import free_port


def attempt(store: dist.Store, ranks: Sequence[int] = (0, 1, 2)) -> list[str]:
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: agree_on_attempt(store, rank, 3, 200), ranks))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_each_attempt_agrees_on_a_name_of_its_own(order: tuple[int, ...]) -> None:
    store = dist.HashStore()
    names = [attempt(store, order) for _ in range(3)]
    assert [len(set(each)) for each in names] == [1, 1, 1] and len({each[0] for each in names}) == 3


def test_ranks_that_died_while_they_met_are_not_taken_for_the_new_ones() -> None:
    store = dist.HashStore()
    for dead in (1, 2):
        with pytest.raises(UserError, match=f"rank {dead} met no rank 0 within 0 s"):
            agree_on_attempt(store, dead, 3, 0.05)
    with pytest.raises(UserError, match=r"of 3 ranks \[1, 2\] did not come within 0 s"):
        agree_on_attempt(store, 0, 3, 0.3)
    assert len(set(attempt(store))) == 1


def test_ranks_that_do_not_come_are_said_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, second = [], threading.Event()

    def note(sentence: str) -> None:
        notes.append((sentence, time.monotonic()))
        if len(notes) == 3:
            second.set()

    monkeypatch.setattr(rendezvous, "_note", note)
    monkeypatch.setattr(rendezvous, "_SAY_SECONDS", 0.02)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with rendezvous.absent_ranks_are_said():
        assert second.wait(120)
    assert re.fullmatch(
        r"rank 1 has waited since \d\d:\d\d:\d\d for other ranks to come to node7:29500; are all 4 started, and may "
        r"their hosts reach that port\?",
        notes[0][0],
    )
    assert notes[1][1] - notes[0][1] >= 0.04 and notes[2][1] - notes[1][1] >= 0.08


def test_a_rank_that_is_alone_says_so_while_it_meets(tmp_path: Path) -> None:
    program = "from ffcv_train.system import rendezvous\nrendezvous._SAY_SECONDS = 0.2\n" + PROGRAM
    (tmp_path / "program.py").write_text(program)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    alone = {"TORCHELASTIC_RESTART_COUNT": "0", "RANK": "0", "LOCAL_RANK": "0"}
    rank = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
        env=os.environ | where | alone,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert rank.stderr is not None and rank.stderr.readline().startswith("note: rank 0 has waited since ")
    finally:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize(
    ("change", "cannot"),
    [
        ({}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False"}, False),
        ({"TORCHELASTIC_MAX_RESTARTS": "0"}, False),
        ({"GROUP_WORLD_SIZE": "1"}, False),
    ],
)
def test_when_a_lost_host_cannot_come_back(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], cannot: bool
) -> None:
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}
    for name, value in (torchrun | change).items():
        monkeypatch.setenv(name, value)
    assert hosts_cannot_come_back() == cannot


PROGRAM = """
import os, pathlib, sys, time, torch
from ffcv_train.cli.main import run_main
from ffcv_train.system.distributed import all_reduce_sum, from_all_ranks, process_group
folder = pathlib.Path(sys.argv[1])
def main():
    with process_group("cpu") as process:
        counts = from_all_ranks(process, int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
        total = all_reduce_sum(torch.tensor([process.rank + 1])).item()
        if os.environ.get("DIES") and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), 9)
        all_reduce_sum(torch.ones(1))
        (folder / f"met{process.rank}").write_text(f"{total} of {process.world_size}, restarts {counts}")
run_main(main)
"""


def agent(folder: Path, *flags: str, **environment: str) -> subprocess.Popen:
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=2", "--monitor-interval=0.1", *flags]
    return subprocess.Popen(
        [*command, str(folder / "program.py"), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(700)  # torchrun and its ranks start twice, which a busy machine takes minutes for
def test_torchrun_starts_its_ranks_again(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "--nproc_per_node=2", f"--master_port={free_port()}", DIES="1")
    said, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, said
    assert [(tmp_path / f"met{rank}").read_text() for rank in range(2)] == ["3 of 2, restarts [1, 1]"] * 2


@pytest.mark.timeout(700)  # torchrun and its ranks start twice, which a busy machine takes minutes for
def test_agents_that_count_their_restarts_differently_start_again(tmp_path: Path) -> None:
    """Two hosts: the one whose rank died counts it, the other one's agent only follows."""
    flags = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    agents = [agent(tmp_path, *flags, "--rdzv_id=r", **more) for more in ({}, {"DIES": "1"})]
    said = [launcher.communicate(timeout=600)[0] for launcher in agents]
    assert [launcher.returncode for launcher in agents] == [0, 0], said
    assert sum(text.count("note: a host that is lost can come back") for text in said) == 2, "once in each attempt"
    found = [(tmp_path / f"met{rank}").read_text() for rank in range(2)]
    # An agent that sees its rank end by the other's death, before it hears of it, counts as well.
    assert found[0] == found[1] and re.fullmatch(r"3 of 2, restarts \[(0, 1|1, 0|1, 1)\]", found[0]), found
