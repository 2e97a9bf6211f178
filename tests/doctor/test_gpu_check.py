"""`gpu-check` on a CPU: its rows hold, each is able to fail, and two processes are compared with one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ffcv_train.cli import gpu_check
from ffcv_train.cli.main import run
from ffcv_train.doctor.gpu import check as checking
from ffcv_train.doctor.gpu import kernels
from ffcv_train.doctor.gpu.bench import CPU, Bench, prepare
from ffcv_train.doctor.gpu.figures import Figure, distance, relative_distance, total_distance
from ffcv_train.losses import maxsup
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training import state
from ffcv_train.training.ema import WeightAverage
from tests.support.photographs import ROOT
from tests.support.runs import free_port

ON_A_CPU = (
    *("loader", "image files", "device decode", "augmentation", "criteria", "evaluation", "step's options"),
    *("overflow", "resume"),
)


def checked(folder: Path, *rows: str) -> tuple[int, dict[str, Any]]:
    """The exit status of the command, and what it wrote."""
    output = folder / "findings.json"
    try:
        gpu_check.main(["--device=cpu", f"--rows={','.join(rows)}", f"--json={output}"])
        status = 0
    except SystemExit as error:
        status = int(str(error.code))
    return status, json.loads(output.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    status, findings = checked(tmp_path_factory.mktemp("check"), *ON_A_CPU, "memory", "no waits", "speed", "ranks")
    assert status == 0
    return findings


@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_row_holds_on_a_cpu(found: dict[str, Any], name: str) -> None:
    (row,) = [row for row in found["rows"] if row["row"] == name]
    assert row["result"] == "holds", row.get("traceback", row["told"])
    assert any(figure["most"] is not None or figure["least"] is not None for figure in row["figures"])


@pytest.mark.parametrize("name", ["memory", "no waits", "speed", "ranks"])
def test_a_row_that_proves_nothing_on_a_cpu_says_so(found: dict[str, Any], name: str) -> None:
    (row,) = [row for row in found["rows"] if row["row"] == name]
    assert row["result"] == "not judged"


def test_findings_say_where_they_are_from(found: dict[str, Any]) -> None:
    assert found["holds"] is True
    assert found["devices"] == ["cpu"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


class Planted:
    """Faults, each of which one row must find."""

    @staticmethod
    def criteria(monkeypatch: pytest.MonkeyPatch) -> None:
        real = maxsup.maxsup

        def wrong(logits: Tensor, targets: Tensor, alpha: Tensor | float) -> Tensor:
            return real(logits, targets, alpha) * (1.001 if logits.dtype == torch.float32 else 1)

        monkeypatch.setattr(maxsup, "maxsup", wrong)

    @staticmethod
    def resume(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(state, "load_optimizer", lambda optimizer, saved: None)

    @staticmethod
    def step_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
        real = WeightAverage.update

        def every_other(self: WeightAverage) -> None:
            if self.updates % 2 == 0 or self._sources[0].dtype == torch.float64:
                real(self)
            else:
                self.updates += 1

        monkeypatch.setattr(WeightAverage, "update", every_other)

    @staticmethod
    def overflow(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.amp.GradScaler, "step", lambda self, optimizer: optimizer.step())


@pytest.mark.parametrize("row", ["criteria", "resume", "step's options", "overflow"])
def test_a_row_finds_a_planted_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: str, capsys: pytest.CaptureFixture
) -> None:
    getattr(Planted, row.replace("'", "_").replace(" ", "_"))(monkeypatch)
    status, findings = checked(tmp_path, row)
    assert status == 1
    assert findings["holds"] is False
    assert [found["result"] for found in findings["rows"]] == ["fails"]
    assert "1 fail" in capsys.readouterr().out


def test_what_a_row_raises_is_its_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> list[Figure]:
        raise KeyError("momentum")

    monkeypatch.setattr(checking, "prepare", lambda device, folder: Bench(device, folder))
    monkeypatch.setattr(checking, "ROWS", (checking.Row("broken", "nothing", broken),))
    findings = checking.check("cpu", ["broken"], lambda row: None)
    assert findings is not None
    (row,) = findings["rows"]
    assert (row["result"], row["told"]) == ("fails", "KeyError: 'momentum'")
    assert "broken" in row["traceback"]


def test_a_row_fails_where_it_fails_on_one_rank() -> None:
    plain = {"row": "r", "proves": "p", "result": "holds", "told": "x 1", "figures": []}
    bad = plain | {"result": "fails", "told": "x 2"}
    merged = checking._merged([plain, bad, plain])
    assert (merged["result"], merged["told"]) == ("fails", "rank 1: x 2")


def test_what_is_not_a_number_keeps_no_bound() -> None:
    nan, one = torch.tensor([float("nan")]), torch.tensor([1.0])
    for value in (distance(nan, one), relative_distance(one, nan), total_distance([nan], [one], [one]), float("nan")):
        assert not Figure("x", value, most=1e9).holds
    assert distance(one, torch.ones(2)) == float("inf")
    assert Figure("x", float("nan")).holds  # only reported


def test_recipes_that_differ_in_schedule_only_are_one(tmp_path: Path) -> None:
    bench = prepare(CPU, tmp_path)
    found = kernels.distinct_recipes(bench, ROOT)
    assert {"rn50_configs/rn50_16_epochs", "rn50_configs/rn50_88_epochs"} & set(found) == {
        "rn50_configs/rn50_16_epochs"
    }
    assert {name.split("/")[0] for name in found} == {path.name for path in ROOT.glob("*_configs")}
    for name, config in found.items():
        assert config.model.arch in (ROOT / f"{name}.yaml").read_text(), name
        assert config.training.batch_size == 16


def test_two_processes_learn_what_one_does_and_none_outlives_the_other(tmp_path: Path) -> None:
    output = tmp_path / "findings.json"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = ["-m", "ffcv_train", "gpu-check", "--device=cpu", "--rows=ranks,death", f"--json={output}"]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(output.read_text())
    assert [row["result"] for row in findings["rows"]] == ["holds"] * 2
    assert [len(row["figures_of_ranks"]) for row in findings["rows"]] == [2, 2]
    assert findings["devices"] == ["cpu", "cpu"]


def test_a_row_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"--rows names 'sped', and there are: loader, "):
        gpu_check.main(["--device=cpu", "--rows=loader,sped"])


def test_without_a_gpu_the_check_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu-check"])
    with pytest.raises(SystemExit) as status:
        run("gpu-check")
    assert status.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: PyTorch sees no GPU; check nvidia-smi, or try the rows that need none with --device=cpu"
    )


def test_the_devices_own_process_is_alone_before_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    from ffcv_train.system.distributed import this_process

    assert this_process("cpu") == Process(1, 2, 1, 2, CPU)
    assert not torch.distributed.is_initialized()
