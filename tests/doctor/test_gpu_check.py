"""`gpu-check` on a CPU: its rows hold, each is able to fail, and two processes are compared with one."""

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ffcv_train.cli import gpu_check
from ffcv_train.cli.main import run
from ffcv_train.doctor.gpu import bench as bench_module
from ffcv_train.doctor.gpu import check as checking
from ffcv_train.doctor.gpu import kernels, ranks, speed
from ffcv_train.doctor.gpu.bench import CPU, Bench, prepare
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, distance, relative_distance, total_distance
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


ONE = Figure("x", 1, most=2)


def rows_of(monkeypatch: pytest.MonkeyPatch, *rows: checking.Row, minutes: float = 5.0) -> list[dict[str, Any]]:
    """What a check of these rows finds, on no images."""
    monkeypatch.setattr(checking, "prepare", Bench)
    monkeypatch.setattr(checking, "ROWS", rows)
    findings = checking.check("cpu", checking.names(), lambda row: None, minutes)
    assert findings is not None
    return findings["rows"][: len(rows)]


def checked(folder: Path, *rows: str, minutes: str = "1000") -> tuple[int, dict[str, Any]]:
    """The exit status of the command, and what it wrote."""
    output = folder / "findings.json"
    try:
        gpu_check.main(["--device=cpu", f"--rows={','.join(rows)}", f"--json={output}", f"--minutes={minutes}"])
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
    results = [row["result"] for row in found["rows"] if row["row"].partition(":")[0] == name]
    assert results == ["not judged"] * (len(speed.CASES) if name == "speed" else 1)


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

    rows = rows_of(
        monkeypatch, checking.Row("broken", "nothing", broken), checking.Row("whole", "all", lambda _: [ONE])
    )
    assert (rows[0]["result"], rows[0]["told"]) == ("fails", "KeyError: 'momentum'")
    assert "broken" in rows[0]["traceback"]
    assert (rows[1]["result"], rows[1]["told"]) == ("holds", "x 1 (at most 2)")


def test_rows_after_one_that_broke_the_device_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> list[Figure]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", gone)
    rows = rows_of(monkeypatch, checking.Row("first", "", gone), checking.Row("second", "", gone))
    assert [row["told"] for row in rows] == ["CUDA error: an illegal memory access was encountered"] * 2


def test_a_compilers_whole_output_stays_out_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> list[Figure]:
        raise RuntimeError("line\n" * 1000)

    (row,) = rows_of(monkeypatch, checking.Row("broken", "", broken))
    assert len(row["told"]) == 600 and row["told"].endswith("…")
    assert row["traceback"].count("line\n") >= 1000


def test_what_is_not_judged_keeps_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(bench: Bench) -> list[Figure]:
        raise NotJudged("few cores", [Figure("images/s", 500)])

    (row,) = rows_of(monkeypatch, checking.Row("overlap", "", slow))
    assert (row["result"], row["told"]) == ("not judged", "few cores (images/s 500)")
    assert row["figures"] == [{"what": "images/s", "value": 500, "most": None, "least": None}]


def test_no_row_is_begun_when_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    for module in (checking, bench_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def takes(seconds: float) -> Callable[[Bench], list[Figure]]:
        def find(bench: Bench) -> list[Figure]:
            clock[0] += seconds
            return [ONE]

        return find

    lasting = [checking.Row(f"speed: {number}", "", takes(70)) for number in range(6)]
    rows = rows_of(monkeypatch, *lasting)
    assert [row["result"] for row in rows] == ["holds"] * 5 + ["left out"]  # the fifth began after 280 s of 300
    assert rows[-1]["told"] == "no time was left: raise --minutes, or choose the row with --rows"
    clock[0] = 1000.0
    assert [row["result"] for row in rows_of(monkeypatch, *lasting, minutes=2.0)] == ["holds"] * 2 + ["left out"] * 4


def test_the_command_ends_when_its_time_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, findings = checked(tmp_path, "loader", "criteria", "ranks", minutes="1e-9")
    assert (status, findings["minutes"]) == (0, 1e-9)
    assert [row["result"] for row in findings["rows"]] == ["left out", "left out", "not judged"]
    assert "2 left out for want of time (--minutes)" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "five"])
def test_minutes_that_are_none_are_refused(minutes: str) -> None:
    with pytest.raises(UserError, match="--minutes must be a number above 0"):
        gpu_check.main(["--device=cpu", f"--minutes={minutes}"])


def test_recipes_that_no_time_was_left_for_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "distinct_recipes", lambda *_: {"one": None, "two": None, "three": None})
    clock = [0.0]
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def tried(bench: Bench, config: None) -> str:
        clock[0] += 1
        return ""

    monkeypatch.setattr(kernels, "_first_wait", tried)
    figures = kernels.no_waits(Bench(torch.device("cuda"), tmp_path, 2.0))
    assert [(figure.what, figure.value) for figure in figures] == [
        *(("recipes", 2), ("that wait", 0), ("not tried, for no time was left", 1)),
    ]


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(torch.device("cuda"), tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for row in (kernels.compilation, kernels.replayed, functools.partial(speed.step, case=speed.CASES[-1])):
        with pytest.raises(NotJudged, match="Triton needs a C compiler: install gcc"):
            row(bench)


def test_a_card_without_bf16_is_asked_for_fp16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, recipe = Bench(torch.device("cuda"), tmp_path), ROOT / "rn18_configs" / "rn18_16_epochs.yaml"
    for emulated, amp in ((True, "fp16"), (False, "bf16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, no=emulated: not no)
        assert (bench.amp, kernels._small(bench, recipe).training.amp) == (amp, amp)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(NotJudged, match="only emulates bf16"):
        speed.step(bench, speed.Case("resnet50", 224, "bf16"))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_meet_cost_no_finding(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in (("RANK", str(rank)), ("WORLD_SIZE", "2"), ("LOCAL_RANK", str(rank)), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)

    @contextlib.contextmanager
    def apart(device: str) -> Iterator[None]:
        raise UserError("the processes could not meet")
        yield

    monkeypatch.setattr(checking, "process_group", apart)
    monkeypatch.setattr(checking, "prepare", Bench)
    monkeypatch.setattr(checking, "ROWS", (checking.Row("whole", "all", lambda bench: [ONE]),))
    monkeypatch.setattr(ranks, "on_one_device", lambda *_: "")
    kept: list[dict[str, Any]] = []
    with contextlib.nullcontext() if rank == 0 else pytest.raises(UserError, match="could not meet"):
        findings = checking.check("cpu", ["whole", *checking.RANKS], lambda row: None, keep=kept.append)
        assert findings is not None and not findings["holds"]
        told = [(row["row"], row["result"], row["told"]) for row in findings["rows"]]
        assert told[0] == ("whole", "holds", "x 1 (at most 2)")
        assert told[1:] == [(name, "fails", "the processes could not meet") for name in checking.RANKS]
        before = [(row["result"], row["told"]) for row in kept[0]["rows"]]
        assert before == [("holds", told[0][2]), *[("fails", "the processes did not come to its end")] * 2]
    assert len(kept) == (1 if rank == 0 else 0)


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
    command = [
        "-m",
        "ffcv_train",
        "gpu-check",
        "--device=cpu",
        "--rows=ranks,death",
        f"--json={output}",
        "--minutes=1000",
    ]
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
