"""From measured speeds to what limits the run, when, for how long, and what to do about it: pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from ffcv_train.config.schema import ResolutionConfig
from ffcv_train.training import schedules

_EVEN = 0.05  # speeds that differ by no more than this share count as equal: measurements are no better
_IDLE = 0.6  # a loader that keeps less than this share of its cores busy waits for something else

Bottleneck = Literal["loader", "step", "even"]


@dataclass(frozen=True)
class Stage:
    """Epochs `first_epoch` (from 0) … `first_epoch + epochs - 1` train at `resolution` pixels a side."""

    resolution: int
    first_epoch: int
    epochs: int


@dataclass(frozen=True)
class Speed:
    """Images per second of wall time, and CPU seconds of this machine's cores per image."""

    images_per_s: float
    core_seconds: float

    @property
    def per_core(self) -> float:
        """Images per second of one core that does nothing else."""
        return 1 / self.core_seconds if self.core_seconds > 0 else math.inf

    @property
    def busy_cores(self) -> float:
        """Cores that were at work on average."""
        return self.images_per_s * self.core_seconds


@dataclass(frozen=True)
class Forecast:
    """What a stage of the run will do on this machine; `loader` and `step` are the speeds that each has alone.

    `images_per_s` is the speed of both together, `cores_to_balance` the cores (the step's own included) with which the
    loader keeps up with the step, `epoch_seconds` the time of one epoch's training.
    """

    stage: Stage
    loader: Speed
    step: Speed
    images_per_s: float
    bottleneck: Bottleneck
    cores_to_balance: int
    epoch_seconds: float

    @property
    def seconds(self) -> float:
        """Training time of the whole stage."""
        return self.stage.epochs * self.epoch_seconds

    @property
    def seconds_lost_to_loader(self) -> float:
        """What the stage would be shorter by if loading cost nothing."""
        return self.seconds * max(0.0, 1 - self.images_per_s / self.step.images_per_s)


@dataclass(frozen=True)
class Circumstances:
    """What advice depends on besides speeds. Sizes in bytes; `raw_bytes` is the data set's size as pixels.

    `workers` are the decoding threads of all processes of the run on this machine, `jpeg_share` the share in [0, 1]
    of samples that are stored as JPEG, `in_memory` what the configuration asks for.
    """

    device_type: str
    cores: int
    workers: int
    in_memory: bool
    file_bytes: int
    raw_bytes: int
    available_bytes: int
    jpeg_share: float
    amp: str
    channels_last: bool
    compile: bool

    @property
    def fits(self) -> bool:
        """Whether the file may be trained on from the page cache; the trainer refuses where it does not fit."""
        return self.file_bytes <= self.available_bytes


def stages(config: ResolutionConfig, epochs: int) -> list[Stage]:
    """The run's epochs, grouped by the side of their images."""
    found = []
    for side, group in groupby(range(epochs), key=lambda epoch: schedules.resolution(config, epoch)):
        members = list(group)
        found.append(Stage(side, members[0], len(members)))
    return found


def forecast(stage: Stage, loader: Speed, step: Speed, cores: float, images_per_epoch: int) -> Forecast:
    """What `stage` will do where `loader` and `step`, each measured alone, work at the same time.

    Both are speeds of the whole machine, of which `cores` cores are free for the run. Together they are as fast as the
    slower of the two, and no faster than the cores have time for: cores / (sum of both parts' core-seconds per image).
    """
    if step.core_seconds > 0:  # several devices may ask for more cores than there are
        step = replace(step, images_per_s=min(step.images_per_s, cores / step.core_seconds))
    per_image = loader.core_seconds + step.core_seconds
    together = min(loader.images_per_s, step.images_per_s)
    if per_image > 0:
        together = min(together, cores / per_image)
    return Forecast(
        stage,
        loader,
        step,
        images_per_s=together,
        bottleneck=bottleneck(loader.images_per_s, step.images_per_s),
        # A hair below, so that 9.000000001 cores are 9.
        cores_to_balance=max(1, math.ceil(step.images_per_s * per_image - 1e-6)),
        epoch_seconds=images_per_epoch / together,
    )


def bottleneck(loader: float, step: float) -> Bottleneck:
    """The slower of the two speeds (images/s), or "even" where they differ by no more than 5% of the faster."""
    if abs(loader - step) <= _EVEN * max(loader, step):
        return "even"
    return "loader" if loader < step else "step"


def advise(facts: Circumstances, forecasts: Sequence[Forecast]) -> str:
    """One sentence: what to change first, and why."""
    if facts.in_memory and not facts.fits:
        return (
            f"The file has {gib(facts.file_bytes)}, of memory {gib(facts.available_bytes)} are available: train with "
            f"--data.in_memory=0, as it was measured here, or write the data set smaller with a lower "
            f"--cfg.max_resolution."
        )
    slowed = [f for f in forecasts if f.bottleneck == "loader"]
    lost = sum(f.seconds_lost_to_loader for f in forecasts) / sum(f.seconds for f in forecasts)
    if slowed:
        head = f"The loader is the bottleneck {_when(slowed, forecasts)} and costs {lost:.0%} of the time"
        return f"{head}: {_speed_up_loader(facts, slowed)}."
    limited = [f for f in forecasts if f.bottleneck == "step"]
    if not limited:
        return "Loader and step are equally fast: only changing both would shorten the run."
    loading = f"loading takes {lost:.0%} of the time" if lost > _EVEN else "a faster loader would gain little"
    return f"The step is the bottleneck {_when(limited, forecasts)}, {loading}: {_speed_up_step(facts)}."


def epochs_in_words(stage: Stage) -> str:
    """The stage's epochs, counted from 1 as the progress line does: 5, or 5–12."""
    first, last = stage.first_epoch + 1, stage.first_epoch + stage.epochs
    return str(first) if first == last else f"{first}–{last}"


def gib(size: int) -> str:
    """A size in bytes as 1.5 GiB; below half a GiB as MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.0f} MiB"


def _when(some: Sequence[Forecast], all_stages: Sequence[Forecast]) -> str:
    if len(some) == len(all_stages):
        return "throughout"
    epochs = ", ".join(epochs_in_words(f.stage) for f in some)
    return f"in epoch{'s' if sum(f.stage.epochs for f in some) > 1 else ''} {epochs}"


def _speed_up_loader(facts: Circumstances, slowed: Sequence[Forecast]) -> str:
    usable = min(facts.workers, facts.cores)
    if usable < facts.cores:
        return (
            f"{facts.workers} decoding threads leave some of the {facts.cores} cores unused, so drop --data.num_workers"
        )
    worst = max(slowed, key=lambda f: f.cores_to_balance)
    if worst.loader.busy_cores < _IDLE * usable:
        return (
            f"it kept {worst.loader.busy_cores:.1f} of {usable} cores busy and waited for storage or other programs, "
            f"so run the doctor again when the file is in the page cache and the machine idle"
        )
    way = f"balance takes {worst.cores_to_balance} cores, there are {facts.cores}"
    storage = _faster_storage(facts)
    return f"{way}; {storage}" if storage else f"{way}, so use more cores or fewer pixels (--resolution.max_res)"


def _faster_storage(facts: Circumstances) -> str:
    """How to write the data set so that less is to be decoded and memory still holds it; empty where nothing does."""
    mixed = (facts.file_bytes + facts.raw_bytes) // 2
    if facts.jpeg_share > _EVEN and facts.raw_bytes <= facts.available_bytes:
        return f"--cfg.write_mode=raw would spare decoding, and its {gib(facts.raw_bytes)} fit the memory"
    if facts.jpeg_share > 1 - _EVEN and mixed <= facts.available_bytes:
        return f"--cfg.write_mode=proportion would halve decoding, and its {gib(mixed)} fit the memory"
    return ""


def _speed_up_step(facts: Circumstances) -> str:
    if facts.device_type == "cpu":
        return "train on a GPU, or a smaller network or side"
    trials = [
        *(["--model.channels_last=1"] if not facts.channels_last else []),
        *(["--training.amp=bf16"] if facts.amp == "off" else []),
        *(["--model.compile=1"] if not facts.compile else []),
        "a larger --training.batch_size",
    ]
    return f"try {' and '.join(trials)}, and run the doctor again"
