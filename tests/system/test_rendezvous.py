"""Ranks that torchrun started again meet each other, not what their predecessors left in the agent's store."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from ffcv_train.system.errors import UserError
from ffcv_train.system.rendezvous import agree_on_attempt
from tests.support.photographs import ROOT
from tests.support.runs import free_port


def attempt(store: dist.Store, ranks: Sequence[int] = (0, 1, 2)) -> list[str]:
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: agree_on_attempt(store, rank, 3, 20), ranks))


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


def test_torchrun_starts_its_ranks_again(tmp_path: Path) -> None:
    launcher = agent(tmp_path, "--nproc_per_node=2", f"--master_port={free_port()}", DIES="1")
    said, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, said
    assert [(tmp_path / f"met{rank}").read_text() for rank in range(2)] == ["3 of 2, restarts [1, 1]"] * 2


def test_agents_that_count_their_restarts_differently_start_again(tmp_path: Path) -> None:
    """Two hosts: the one whose rank died counts it, the other one's agent only follows."""
    flags = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    agents = [agent(tmp_path, *flags, "--rdzv_id=r", **more) for more in ({}, {"DIES": "1"})]
    said = [launcher.communicate(timeout=200)[0] for launcher in agents]
    assert [launcher.returncode for launcher in agents] == [0, 0], said
    found = [(tmp_path / f"met{rank}").read_text() for rank in range(2)]
    # An agent that sees its rank end by the other's death, before it hears of it, counts as well.
    assert found[0] == found[1] and re.fullmatch(r"3 of 2, restarts \[(0, 1|1, 0|1, 1)\]", found[0]), found
