"""A small share of the faults, and what the harness finds wrong; `test_faults.py` runs it in a process of its own."""

import shutil
from pathlib import Path

import pytest
import torch

from faults.kinds import Bench
from faults.run import KINDS, inject
from faults.runs import Run, bad_end, differs, options

SHARE = (
    "SIGKILL where files are written",
    "SIGTERM at a random moment",
    "full disk where files are written",
    "disk full for TensorBoard alone",
    ".beton cut off, mapped",
    "worker stopped, then SIGTERM",
    "workers do not start",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.set_up(tmp_path_factory.mktemp("bench"))


# A run is a fork of this process, and warnings are errors in tests alone.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SHARE)
def test_what_is_promised_holds(bench: Bench, name: str) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == name)
    assert inject(bench, kind, 1, seed=1) == [[]]


def test_another_end_is_found(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(bench.reference / "r", tmp_path / "r")
    assert differs(tmp_path, bench.reference) == []
    state = torch.load(tmp_path / "r/final.pt", weights_only=True)
    next(iter(state["model"].values())).view(-1)[0] += 1
    torch.save(state, tmp_path / "r/final.pt")
    (tmp_path / "r/best.pt").unlink()
    log = (tmp_path / "r/log.jsonl").read_text()
    (tmp_path / "r/log.jsonl").write_text(log[log.index("\n") + 1 :])
    assert differs(tmp_path, bench.reference) == [
        "best.pt is missing",
        "final.pt: 1 tensors of model differ",
        "log.jsonl differs",
    ]


def test_a_traceback_and_another_status_are_found(bench: Bench, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("a defect")

    (wrong,) = bad_end(Run(options(bench.data, tmp_path), tmp_path / "out.txt", fail), 0)
    assert wrong.startswith("status 1, a traceback: ") and wrong.endswith("ValueError: a defect")
