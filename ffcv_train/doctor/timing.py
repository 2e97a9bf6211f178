"""Measured speeds of the real loader and the real training step, each alone, in turns."""

import contextlib
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.doctor.balance import Speed, Stage
from ffcv_train.training.learner import Learner

ROUNDS = 3
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Timing:
    """What a short timed run did: images, seconds of wall time, CPU seconds of this process."""

    images: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Measurement:
    """The rounds of one resolution, in order; the step's are of one device."""

    loader: tuple[Timing, ...]
    step: tuple[Timing, ...]


def time_stages(
    learner: Learner,
    loader: BetonLoader | ImageLoader,
    num_classes: int,
    stages: Sequence[Stage],
    seconds: float,
    report: Callable[[int, int, str], None],
) -> list[Measurement]:
    """Time loader and step at each stage's side for `seconds` each, in `ROUNDS` turns, so that what else the machine
    does strikes all alike.

    Calls `report` with what is done, of how many parts, and what comes next. The weights of `learner` change.
    """
    parts = len(stages) * (1 + 2 * ROUNDS)
    done = itertools.count()
    steps = []
    # The largest side first: buffers that fit it fit all.
    for stage in sorted(stages, key=lambda s: -s.resolution):
        report(next(done), parts, f"warming up at {stage.resolution} px")
        time_loader(loader, stage.resolution, 0.0, epoch=0)
        steps.append(StepTimer(learner, stage, num_classes))
    steps.reverse()
    loader_samples: list[list[Timing]] = [[] for _ in stages]
    step_samples: list[list[Timing]] = [[] for _ in stages]
    for turn in range(ROUNDS):
        for i, stage in enumerate(stages):
            report(next(done), parts, f"loader at {stage.resolution} px")
            sample = time_loader(loader, stage.resolution, seconds / ROUNDS, epoch=turn)
            loader_samples[i].append(sample)
            report(next(done), parts, f"step at {stage.resolution} px")
            step_samples[i].append(steps[i].time(seconds / ROUNDS))
    return [Measurement(tuple(a), tuple(b)) for a, b in zip(loader_samples, step_samples, strict=True)]


def speed(samples: Sequence[Timing]) -> Speed:
    """Medians over the rounds."""
    return Speed(
        statistics.median(s.images / s.seconds for s in samples),
        statistics.median(s.cpu_seconds / s.images for s in samples),
    )


def times(one: Speed, devices: int) -> Speed:
    """The speed of `devices` devices at once."""
    return dataclasses.replace(one, images_per_s=one.images_per_s * devices)


def time_loader(loader: BetonLoader | ImageLoader, resolution: int, seconds: float, epoch: int) -> Timing:
    """Read epochs from `epoch` on, at `resolution` pixels a side, for about `seconds`, a few batches at least."""
    loader.set_resolution(resolution)
    images, wall, cpu = 0, 0.0, 0.0
    end = _clocks()[0] + seconds
    while not images or _clocks()[0] < end:
        loader.set_epoch(epoch)
        part = _time_epoch(loader, end)
        images, wall, cpu = images + part.images, wall + part.seconds, cpu + part.cpu_seconds
        epoch += 1
    return Timing(images, wall, cpu)


def _time_epoch(loader: BetonLoader | ImageLoader, end: float) -> Timing:
    """An epoch, or the part of it until the time `end`.

    A whole epoch counts from its call to its end. Of a part, all from the first batch on counts: batches ahead are
    then equally far at both ends of the interval, if some are left.
    """
    start = first = _clocks()
    images = after_first = 0
    with contextlib.closing(loader.epoch()) as batches:
        for number, batch in enumerate(batches):
            images += len(batch.labels)
            now = _clocks()
            if number == 0:
                first = now
                continue
            after_first += len(batch.labels)
            if now[0] >= end and 2 <= number < len(loader) - 2:
                return Timing(after_first, now[0] - first[0], now[1] - first[1])
    now = _clocks()
    return Timing(images, now[0] - start[0], now[1] - start[1])


class StepTimer:
    """Times the run's own step on a batch that lies on the device: model, criterion, optimizer, precision.

    Warms up when it is made: compilation, cuDNN's choice of kernels, memory.
    """

    def __init__(self, learner: Learner, stage: Stage, num_classes: int) -> None:
        self._learner = learner
        device, count, side = learner.process.device, learner.sizes.per_device, stage.resolution
        self._device = device
        self._images = count * learner.sizes.accumulate
        generator = torch.Generator().manual_seed(0)
        # As the loader's batches lie: channels last.
        pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, num_classes, (count,), generator=generator)
        indices = torch.arange(count)
        images = pixels.to(device).permute(0, 3, 1, 2)
        self._batch = Batch(images, labels.to(device), indices.to(device), indices.numpy())
        learner.training_mode()
        for _ in range(_WARM_UP_STEPS):
            start = time.perf_counter()
            self._step()
            self._wait()
        self._estimate = time.perf_counter() - start

    def time(self, seconds: float) -> Timing:
        """About `seconds` of steps, one at least."""
        self._wait()
        before = time.process_time()
        self._step()
        # Before the device is waited for: what a step costs the cores is its launch, not the waiting.
        cpu = time.process_time() - before
        self._wait()
        count = max(1, int(seconds / self._estimate))
        start = time.perf_counter()
        for _ in range(count):
            self._step()
        self._wait()
        elapsed = time.perf_counter() - start
        self._estimate = elapsed / count
        return Timing(count * self._images, elapsed, cpu * count)

    def _step(self) -> None:
        # The first step's rate is so small that random labels lead nowhere.
        self._learner.step(0, 0, itertools.repeat(self._batch))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class OtherPrograms:
    """How many of this process's cores other programs use from the making of this on."""

    def __init__(self) -> None:
        self._start = self._readings()

    def busy_cores(self) -> float:
        """Mean number of cores that were at work for others."""
        wall, busy, own = (now - then for now, then in zip(self._readings(), self._start, strict=True))
        return max(0.0, busy - own) / wall

    @staticmethod
    def _readings() -> tuple[float, float, float]:
        cores = psutil.cpu_times(percpu=True)
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
        busy = sum(sum(cores[i]) - cores[i].idle - getattr(cores[i], "iowait", 0.0) for i in usable if i < len(cores))
        return time.perf_counter(), busy, time.process_time()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
