"""The doctor's trials: a batch that can be learned and one that cannot, a rate, a batch size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_train.cli import doctor
from ffcv_train.doctor import trials
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.learner import Learner
from tests.support.runs import ALONE, Betons, config, options

FAST = (
    "--training.amp=off",
    "--resolution.max_res=24",
    "--resolution.end_ramp=0",
    "--augment.mixup=0.8",
    "--loss.name=ls",
)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "OVERFIT_STEPS", 100)
    monkeypatch.setattr(trials, "FIND_STEPS", 30)


def test_one_batch_is_learned_by_heart(
    small_betons: Betons, tmp_path: Path, few_steps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "d.json"
    doctor.main([*options(small_betons, tmp_path / "none", *FAST), "--overfit", f"--json={report}"])
    found = json.loads(report.read_text())["overfit"]
    assert found["images"] == 16 and found["learned"]
    assert len(found["losses"]) == 100 and found["losses"][0] > 0.5 > trials.MEMORISED > found["losses"][-1]
    assert "learned by heart" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_what_cannot_learn_is_told(
    small_betons: Betons, tmp_path: Path, few_steps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.main([*options(small_betons, tmp_path, *FAST, "--lr.lr=1e-8"), "--overfit"])
    assert "NOT learned" in capsys.readouterr().out


def test_a_rate_is_found(
    small_betons: Betons, tmp_path: Path, few_steps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real batches of more than one epoch; stated for lr.reference_batch where the recipe has one."""
    figure, report = tmp_path / "lr.png", tmp_path / "d.json"
    words = options(small_betons, tmp_path, *FAST, "--lr.reference_batch=64")
    doctor.main([*words, "--find-lr", str(figure), f"--json={report}"])
    found = json.loads(report.read_text())["find_lr"]
    assert len(found["rates"]) == len(found["losses"]) <= 30
    assert 1e-5 < found["steepest"] <= found["least"] <= 10
    assert found["option"] == pytest.approx(4 * found["steepest"])
    assert f"--lr.lr={found['option']:.2g}" in capsys.readouterr().out
    assert figure.stat().st_size > 5000


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 10, 200)
    # A logistic fall around 1e-2 in the logarithm, then a rise from 1 on.
    losses = 1 - 1 / (1 + np.exp(-3 * np.log(rates / 1e-2))) + np.maximum(0, np.log(rates))
    steepest, least = trials.suggestion(rates, losses)
    assert steepest == pytest.approx(1e-2, rel=0.1)
    assert 0.1 < least < 1.5
    with pytest.raises(UserError, match="no rate lowers the loss"):
        trials.suggestion(rates, np.log(rates))


@pytest.mark.parametrize("most", [7, 8, 100, 1000])
@pytest.mark.parametrize("limit", [0, 5, 8, 63, 64, 65, 500, 10**6])
def test_the_largest_that_fits(most: int, limit: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= limit

    found = trials.largest(fits, 8, most)
    assert found == min(limit, most) // 8 * 8
    assert max(asked, default=0) <= most and len(asked) <= 2 * np.log2(most / 8 + 2) + 2


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when …")])
def test_batches_are_tried_until_memory_is_out(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The real learner with all that a run holds, on a device that pretends to be a GPU with room for 40 images."""
    real = Learner.step

    def step(self: Learner, epoch: int, number: int, batches: Any) -> float:
        assert self.ema is not None
        if len(next(batches).labels) > 40:
            raise error
        return real(self, epoch, number, batches)

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    class Pretends:
        type = "cuda"

    learner_of = trials._learner
    monkeypatch.setattr(trials, "_learner", lambda config, process: learner_of(config, ALONE))
    synthetic = trials._synthetic
    monkeypatch.setattr(trials, "_synthetic", lambda count, side, k, device: synthetic(count, side, k, ALONE.device))
    process = Process(0, 1, 0, 1, Pretends())  # type: ignore[arg-type]
    told: list[str] = []
    settings = config(small_betons, tmp_path, *FAST, "--training.ema_decay=0.9")
    assert trials.fit_batch(settings, process, told.append) == 40
    assert told[0] == "8 images of 24 px"
    monkeypatch.setattr(Learner, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        trials.fit_batch(settings, process, told.append)
    with pytest.raises(UserError, match="measures a GPU's memory"):
        trials.fit_batch(config(small_betons, tmp_path, *FAST), ALONE, told.append)
