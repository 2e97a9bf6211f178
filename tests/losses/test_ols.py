"""Online label smoothing: its statistics against float64 NumPy, over ranks, and over interruptions."""

import copy
import functools
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_train.config.schema import LossConfig
from ffcv_train.losses import create_criterion
from ffcv_train.losses.online_label_smoothing import OnlineLabelSmoothing, online_label_smoothing
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.distributed import Process, process_group
from ffcv_train.training.trainer import Stopped, Trainer
from tests.support.runs import Betons, config, free_port, log, same_weights, train

CLASSES = 5


def criterion_of(classes: int = CLASSES, **options: float) -> OnlineLabelSmoothing:
    criterion = create_criterion(LossConfig(name="ols", **options), num_classes=classes, epochs=4)
    assert isinstance(criterion, OnlineLabelSmoothing)
    return criterion


def batch(seed: int, soft: bool = False, size: int = 12) -> tuple[Tensor, Tensor]:
    """Logits and targets, class 4 being nobody's prediction."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, CLASSES, generator=random)
    logits[:, 4] -= 20
    hard = torch.randint(CLASSES, (size,), generator=random)
    if not soft:
        return logits, hard
    share = torch.rand(size, 1, generator=random)
    other = torch.randint(CLASSES, (size,), generator=random)
    return logits, share * F.one_hot(hard, CLASSES) + (1 - share) * F.one_hot(other, CLASSES)


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def rows_by_hand(batches: list[tuple[Tensor, Tensor]], old: np.ndarray) -> np.ndarray:
    """Float64, a sample at a time: means of the outputs that were right, each as much as its target says it is."""
    sums, counts = np.zeros((CLASSES, CLASSES)), np.zeros(CLASSES)
    for logits, targets in batches:
        for z, y in zip(logits.double().numpy(), targets.numpy(), strict=True):
            predicted = int(np.argmax(z))
            right = float(y == predicted) if y.ndim == 0 else float(y[predicted])
            sums[predicted] += right * softmax(z)
            counts[predicted] += right
    return np.stack([sums[c] / counts[c] if counts[c] else old[c] for c in range(CLASSES)])


FIRST_ROWS = 0.9 * np.eye(CLASSES) + 0.1 / CLASSES


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_rows_are_the_mean_of_right_predictions_of_the_last_epoch(soft: bool) -> None:
    criterion = criterion_of()
    np.testing.assert_allclose(criterion.rows, FIRST_ROWS, rtol=1e-6)
    rows = FIRST_ROWS
    for epoch in range(3):
        batches = [batch(10 * epoch + i, soft) for i in range(4)]
        for logits, targets in batches:
            before = criterion.rows.clone()
            criterion(logits, targets)
            assert torch.equal(criterion.rows, before)
        criterion.end_epoch()
        rows = rows_by_hand(batches, rows)
        np.testing.assert_allclose(criterion.rows, rows, rtol=1e-5, atol=1e-7)
    # A class that is never predicted keeps its row.
    np.testing.assert_allclose(criterion.rows[4], FIRST_ROWS[4], rtol=1e-6)
    np.testing.assert_allclose(criterion.rows.sum(dim=-1), np.ones(CLASSES), rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_loss_is_the_method_s_in_numpy(soft: bool) -> None:
    logits, targets = batch(1, soft)
    rows = torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(2)).softmax(dim=-1)
    got = online_label_smoothing(logits.double(), targets.double() if soft else targets, rows.double(), 0.7, 0.4)
    for z, y, loss in zip(logits.double().numpy(), targets.numpy(), got.numpy(), strict=True):
        log_q = np.log(softmax(z))
        share = y if soft else np.eye(CLASSES)[y]
        row = sum(share[c] * rows[c].double().numpy() for c in range(CLASSES))
        assert loss == pytest.approx(-0.7 * share @ log_q - 0.4 * row @ log_q, rel=1e-6)


def test_weights_are_options_and_evaluation_collects_nothing() -> None:
    logits, targets = batch(3)
    criterion = criterion_of(hard_weight=1.0, soft_weight=0.0)
    torch.testing.assert_close(criterion(logits, targets), F.cross_entropy(logits, targets))
    smooth = criterion_of(hard_weight=0.0, soft_weight=1.0).eval()
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(smooth(logits, targets), expected)
    assert not smooth.sums.any()
    assert criterion.sums.any()


def test_state_is_two_matrices() -> None:
    state = criterion_of(1000).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == dict.fromkeys(
        ("rows", "sums"), (1000, 1000)
    )
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == 8_000_000


def run(criterion: OnlineLabelSmoothing, batches: range, rank: int = 0, world_size: int = 1) -> None:
    for number in batches:
        if number % world_size == rank:
            criterion(*batch(number))


OLS = ["--loss.name=ols", "--training.epochs=3", "--logging.interval=1", "--resolution.min_res=32"]


def stop_in_second_epoch(step: Any) -> Any:
    def stopping(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = step(self, epoch, number, batches)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    return stopping


def test_a_resumed_run_equals_an_uninterrupted_one(small_betons: Betons, tmp_path: Path) -> None:
    whole = train(small_betons, tmp_path, *OLS, "--logging.run=whole")
    with (
        mock.patch.object(Trainer, "train_step", stop_in_second_epoch(Trainer.train_step)),
        pytest.raises(Stopped),
    ):
        train(small_betons, tmp_path, *OLS, "--logging.run=parts")
    stopped = load_checkpoint(tmp_path / "parts" / "last.pt")
    assert (stopped["epoch"], stopped["step"]) == (1, 2)
    assert stopped["criterion"]["sums"].any()
    assert not np.allclose(stopped["criterion"]["rows"].diagonal(), 0.9 + 0.1 / 4)
    parts = train(small_betons, tmp_path, *OLS, "--logging.run=parts", "--training.resume=auto")
    assert same_weights(whole / "final.pt", parts / "final.pt")
    assert same_weights(whole / "last.pt", parts / "last.pt", "criterion")
    assert [line["train_loss"] for line in log(parts)] == pytest.approx(
        [x["train_loss"] for x in log(whole)], rel=1e-12
    )


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, small_betons: Betons) -> Path:
    """The folder with all that two gloo processes left; one pair serves several tests, for its start takes long."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work_on_rank, (folder, small_betons, free_port()), nprocs=2)
    return folder


def work_on_rank(rank: int, folder: Path, betons: Betons, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group("cpu") as process:
        torch.save(criteria_on_rank(rank), folder / f"{rank}.pt")
        trainers_on_rank(process, folder, betons)


def criteria_on_rank(rank: int) -> dict[str, Any]:
    """An epoch and a half, a checkpoint, and the rest of the second epoch, without and from it."""
    first, second = criterion_of(), criterion_of()
    run(first, range(4), rank, 2)
    first.end_epoch()
    run(first, range(4, 8), rank, 2)
    own = first.sums.clone()
    state = copy.deepcopy(first.state_of_all_ranks())
    assert torch.equal(first.sums, own)
    second.load_state_of_all_ranks(state, rank)
    for criterion in (first, second):
        run(criterion, range(8, 12), rank, 2)
        criterion.end_epoch()
    return {"half": state, "rows": first.rows, "resumed": second.rows}


def trainers_on_rank(process: Process, folder: Path, betons: Betons) -> None:
    """A run, and one that is stopped within its second epoch and resumed."""
    options = functools.partial(config, betons, folder, *OLS, "--training.batch_size=8")
    Trainer(options("--logging.run=whole"), process).fit()
    with mock.patch.object(Trainer, "train_step", stop_in_second_epoch(Trainer.train_step)), pytest.raises(Stopped):
        Trainer(options("--logging.run=parts"), process).fit()
    resumed = Trainer(options("--logging.run=parts", "--training.resume=auto"), process)
    assert resumed.epoch == 1 and 0 < resumed.step < resumed.steps
    assert bool(resumed.learner.criterion.get_buffer("sums").any()) == process.is_main
    resumed.fit()


def test_two_ranks_equal_one_also_when_resumed_within_an_epoch(two_ranks: Path) -> None:
    ranks = [torch.load(two_ranks / f"{rank}.pt") for rank in range(2)]
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    alone, other = criterion_of(), criterion_of()
    run(alone, range(4))
    alone.end_epoch()
    run(alone, range(4, 8))
    for rank in ranks:
        close(rank["half"]["sums"], alone.sums)
        close(rank["half"]["rows"], alone.rows)
    # What two ranks left, one continues.
    other.load_state_of_all_ranks(ranks[1]["half"], rank=0)
    for criterion in (alone, other):
        run(criterion, range(8, 12))
        criterion.end_epoch()
    close(other.rows, alone.rows)
    for rank in ranks:
        close(rank["rows"], alone.rows)
        close(rank["resumed"], alone.rows)
        assert torch.equal(rank["rows"], ranks[0]["rows"])


def test_two_processes_stopped_and_resumed_equal_two_that_were_not(two_ranks: Path) -> None:
    whole, parts = (load_checkpoint(two_ranks / run / "last.pt") for run in ("whole", "parts"))
    for part in ("criterion", "model"):
        for name, tensor in whole[part].items():
            # The order of sums is the threads', and each step enlarges what it changes.
            torch.testing.assert_close(parts[part][name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("cast", [False, True])
def test_the_product_with_soft_targets_is_exact_whatever_a_run_allows(cast: bool) -> None:
    """TF32 and autocast's bf16 have float32's products alone: float64 is what neither touches."""
    dtypes = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                dtypes.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    logits, targets = batch(0, soft=True)
    criterion = criterion_of()
    with Products(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
        criterion(logits.requires_grad_(), targets).backward()
    assert dtypes == [torch.float64]
