"""Short trials of the real network on the real data: does it learn, at which rate, in batches of how many images."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffcv_train.config.schema import AugmentConfig, DistillConfig, RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import DataSets, open_data_sets, train_loader
from ffcv_train.system.distributed import Process, need_one_process
from ffcv_train.system.errors import UserError
from ffcv_train.training import schedules, setup
from ffcv_train.training.learner import Learner

OVERFIT_STEPS = 200
MEMORISED = 0.05
"""Cross-entropy in nats below which a batch counts as learned by heart"""
FIND_STEPS = 100
_LOWEST, _HIGHEST = 1e-6, 10.0
_SMOOTHING = 0.9
_DIVERGED = 4.0
"""The trial ends where the smoothed loss is so many times its least"""
_STEP = 8  # batches are multiples of this


@dataclass(frozen=True)
class Overfit:
    """What became of one batch."""

    images: int
    lr: float
    losses: tuple[float, ...]
    """Cross-entropy in nats before each step"""
    learned: bool


@dataclass(frozen=True)
class RateCurve:
    """The loss of one step after another, each at a higher rate."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed; up to where it diverged"""
    steepest: float
    """The rate at which the loss falls fastest over the logarithm of the rate"""
    least: float
    """The rate at which the loss is least"""
    option: float
    """`steepest` as lr.lr states it, for lr.reference_batch"""


class _Losses:
    """In place of the run's board: keeps every pass' loss."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self.values.append(loss)


def overfit(config: RunConfig, process: Process, report: Callable[[int, int], None]) -> Overfit:
    """Train on one real batch for `OVERFIT_STEPS` steps at the peak rate, by cross-entropy and without augmentation.

    A network, labels and a rate that are in order learn it by heart. Raises `UserError` where the run would.
    """
    plain = AugmentConfig(repeats=1)
    loss = dataclasses.replace(config.loss, name="ce")
    config = dataclasses.replace(config, augment=plain, distill=DistillConfig(), loss=loss)
    learner, batches, _ = _learner(_without_average(config), process)
    with contextlib.closing(batches):
        # A batch may be its loader's buffer, which the next one takes.
        batch = next(batches)
        kept = Batch(batch.images.clone(), batch.labels.clone(), batch.indices.clone(), batch.keys)
    rate, losses = setup.scaled_lr(config, learner.sizes), _Losses()
    learner.lr, learner.board = lambda epoch, step: rate, losses  # type: ignore[method-assign,assignment]
    for step in range(OVERFIT_STEPS):
        learner.step(0, step, itertools.repeat(kept))
        report(step + 1, OVERFIT_STEPS)
    passes = torch.stack(losses.values).float().view(OVERFIT_STEPS, -1).mean(1).tolist()
    last = passes[-OVERFIT_STEPS // 20 :]
    learned = all(map(math.isfinite, last)) and sum(last) / len(last) < MEMORISED
    return Overfit(len(kept.labels), rate, tuple(passes), learned)


def find_lr(config: RunConfig, process: Process, report: Callable[[int, int], None]) -> RateCurve:
    """A rate range test (Smith, arXiv:1506.01186) of `FIND_STEPS` steps, of real batches with the run's own criterion.

    Raises `UserError` where the run would, or no rate lowers the loss.
    """
    learner, batches, _ = _learner(_without_average(config), process)
    rates = np.geomspace(_LOWEST, _HIGHEST, FIND_STEPS)
    board = _Losses()
    learner.lr, learner.board = lambda epoch, step: float(rates[step]), board  # type: ignore[method-assign,assignment]
    smoothed: list[float] = []
    mean = 0.0
    with contextlib.closing(batches):
        for step in range(FIND_STEPS):
            learner.step(0, step, batches)
            value = float(torch.stack(board.values).float().mean())
            board.values.clear()
            report(step + 1, FIND_STEPS)
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
            loss = mean / (1 - _SMOOTHING ** (step + 1))
            if not math.isfinite(loss) or (smoothed and loss > _DIVERGED * min(smoothed)):
                break
            smoothed.append(loss)
    steepest, least = suggestion(rates[: len(smoothed)], np.array(smoothed))
    reference = config.lr.reference_batch
    scale = reference / learner.sizes.global_batch if reference else 1.0
    return RateCurve(tuple(rates[: len(smoothed)].tolist()), tuple(smoothed), steepest, least, steepest * scale)


def suggestion(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """The rates where `losses` fall fastest over log(rate), and where they are least; float64 arrays of one length.

    Raises `UserError` where they never fall.
    """
    if len(losses) < 3:
        raise UserError("the loss diverges at the lowest rate; look at the data and --overfit first")
    least = int(np.argmin(losses))
    slopes = np.gradient(losses, np.log(rates))[: least + 1]
    if least == 0 or slopes.min() >= 0:
        raise UserError("no rate lowers the loss within the trial; look at the data and --overfit first")
    return float(rates[int(np.argmin(slopes))]), float(rates[least])


def fit_batch(config: RunConfig, process: Process, report: Callable[[str], None]) -> int:
    """The largest batch per device, a multiple of 8, whose step at the largest side fits the GPU's memory.

    Synthetic images, the run's own step. Raises `UserError` on a CPU, and where not even 8 images fit.
    """
    if process.device.type != "cuda":
        raise UserError("--fit-batch measures a GPU's memory, and this run's device is a CPU; run it where a GPU is")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=1))
    learner, batches, data = _learner(config, process)
    batches.close()
    side = max(schedules.sides(config.resolution, config.training.epochs))

    def fits(count: int) -> bool:
        report(f"{count} images of {side} px")
        try:
            learner.step(0, 0, itertools.repeat(_synthetic(count, side, data.num_classes, process.device)))
            torch.cuda.synchronize(process.device)
            return True
        except RuntimeError as error:
            if not _is_memory(error):
                raise
            learner.optimizer.zero_grad(set_to_none=True)
            return False
        finally:
            torch.cuda.empty_cache()

    found = largest(fits, _STEP, data.samples)
    if not found:
        raise UserError(f"not even {_STEP} images of {side} px fit the GPU; lower resolution.max_res")
    return found


def _is_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory is out: the allocator says so by a type, CUDA's libraries in words."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        word in str(error) for word in ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA out of memory")
    )


def largest(fits: Callable[[int], bool], step: int, most: int) -> int:
    """The largest multiple of `step`, up to `most`, that fits; 0 where none does. What is smaller must fit as well."""
    low, high = 0, 1
    while high * step <= most and fits(high * step):
        low, high = high, 2 * high
    high = min(high, most // step + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


def _learner(config: RunConfig, process: Process) -> tuple[Learner, "_Endless", DataSets]:
    """The run's own learner, ready to step, its batches without an end, and its data. Raises `UserError`."""
    need_one_process(process, "the doctor")
    training = dataclasses.replace(config.training, resume="")
    val = config.data.val_dataset or config.data.train_dataset
    config = dataclasses.replace(config, training=training, data=dataclasses.replace(config.data, val_dataset=val))
    setup.check_config(config)
    data, sizes = open_data_sets(config), setup.batch_sizes(config, 1)
    learner = Learner(config, process, data, sizes, setup.check_length(config, data, sizes))
    learner.prepare()
    learner.training_mode()
    return learner, _Endless(config, data, sizes.per_device, process), data


def _without_average(config: RunConfig) -> RunConfig:
    """`config` without averaged weights, which a trial of the loss does not look at."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, ema_decay=0.0))


class _Endless:
    """Training batches at the first side, epoch after epoch."""

    def __init__(self, config: RunConfig, data: DataSets, batch_size: int, process: Process) -> None:
        self._loader = train_loader(config, data.train, batch_size, process, data.weights)
        self._loader.set_resolution(schedules.resolution(config.resolution, 0))
        self._batches = self._all()

    def _all(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            self._loader.set_epoch(epoch)
            with contextlib.closing(self._loader.epoch()) as batches:
                yield from batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """End the loader."""
        batches: Any = self._batches
        batches.close()
        self._loader.close()


def _synthetic(count: int, side: int, num_classes: int, device: torch.device) -> Batch:
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)
    labels, indices = torch.arange(count) % num_classes, torch.arange(count)
    return Batch(pixels.permute(0, 3, 1, 2), labels.to(device), indices.to(device), indices.numpy())
