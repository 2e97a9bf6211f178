"""The doctor's examination: from a configuration to a report, as plain values that JSON can say."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.format.beton import Beton, open_beton
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.open import DataSets, open_data_sets, train_loader
from ffcv_train.doctor import balance
from ffcv_train.doctor.balance import Circumstances, Forecast, Stage
from ffcv_train.doctor.residency import cached_share, resident_pages
from ffcv_train.doctor.timing import Measurement, OtherPrograms, Timing, speed, time_stages, times
from ffcv_train.system.distributed import Process, share_of_cores
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.resources import available_bytes
from ffcv_train.training import setup
from ffcv_train.training.learner import Learner
from ffcv_train.training.setup import BatchSizes

_PAGED_BYTES_PER_PROCESS = 2 << 30  # what a loader with data.in_memory=0 holds at most, about


@dataclass(frozen=True)
class DoctorOptions:
    """A resolved command line. `seconds`: measuring time per resolution, of loader and step each.

    `devices`: processes of the run on this machine, 0 for all GPUs that there are.
    """

    config: RunConfig
    json: Path | None
    seconds: float
    devices: int
    overfit: bool = False
    find_lr: Path | None = None
    """The figure"""
    fit_batch: bool = False

    @property
    def tries(self) -> bool:
        """Whether trials are asked for, in place of the examination."""
        return self.overfit or self.fit_batch or self.find_lr is not None


def examine(request: DoctorOptions, process: Process) -> dict[str, Any]:
    """Measure loader and step of the configured run on `process.device` and say which of them limits it when.

    Refuses what the trainer refuses, but for a data set larger than memory, which is measured with data.in_memory=0.
    Leaves nothing on disk.
    """
    setup.check_config(request.config)
    _check_measurable(request.config, process)
    devices = request.devices or (torch.cuda.device_count() if process.device.type == "cuda" else 1)
    sizes = setup.batch_sizes(request.config, devices)
    cores = share_of_cores(dataclasses.replace(process, local_world_size=1))
    share = share_of_cores(dataclasses.replace(process, local_world_size=devices))
    workers, available = devices * (request.config.data.num_workers or share), available_bytes()
    file = request.config.data.train_dataset
    fits = not file or open_beton(file).file_size <= available
    cached = _cached_share(file) if file else None
    config = _of_one_process(request.config, devices, workers, sizes.per_device, in_memory=fits)
    data = open_data_sets(config)
    beton = data.train
    assert isinstance(beton, Beton)
    setup.check_length(config, data, setup.batch_sizes(config, 1))
    steps = data.samples // sizes.global_batch
    if not steps:
        raise UserError(
            f"{beton.path} has {data.samples} samples, fewer than one global batch of {sizes.global_batch} on "
            f"{devices} devices; lower --training.batch_size"
        )
    learner = Learner(config, process, data, sizes, steps)
    learner.prepare()
    stages = balance.stages(config.resolution, config.training.epochs)
    measurements, taken = _measure(learner, data, beton, stages, request.seconds)
    facts = _facts(request.config, beton, process, cores, workers, available)
    forecasts = _forecasts(stages, measurements, devices, cores, taken, steps * sizes.global_batch)
    return {
        "data_set": _data_set(beton, facts, cached, devices),
        "machine": {
            "device_type": process.device.type,
            "devices": devices,
            "cores": cores,
            "loader_threads": workers,
            "cores_of_other_programs": taken,
            "device_memory": _device_memory(process.device),
            **describe_environment(process.device),
        },
        "run": _run(config, data.num_classes, sizes, steps),
        "stages": [_stage(f, m) for f, m in zip(forecasts, measurements, strict=True)],
        "training_seconds": sum(f.seconds for f in forecasts),
        "advice": balance.advise(facts, forecasts),
        "config": to_dict(request.config),
    }


def _measure(
    learner: Learner, data: DataSets, beton: Beton, stages: Sequence[Stage], seconds: float
) -> tuple[list[Measurement], float]:
    """The measurements of `stages`, and how many cores other programs took meanwhile."""
    config, process, others = learner.config, learner.process, OtherPrograms()
    with (
        contextlib.closing(train_loader(config, beton, learner.sizes.per_device, process, data.weights)) as loader,
        _progress() as line,
        _out_of_memory(config),
    ):
        found = time_stages(
            learner,
            loader,
            data.num_classes,
            stages,
            seconds,
            lambda done, parts, what: line.show("doctor", done, parts, what),
        )
    return found, others.busy_cores()


def _check_measurable(config: RunConfig, process: Process) -> None:
    if process.world_size > 1:
        raise UserError(
            f"the doctor measures one device in one process; start it without torchrun, with "
            f"--devices={process.local_world_size}"
        )
    if config.data.format != "beton":
        raise UserError(
            f"the doctor measures .beton files, and data.format is {config.data.format}; write one with "
            "ffcv-train write, or see docs/data.md for what the formats cost"
        )


def _of_one_process(config: RunConfig, devices: int, workers: int, batch_size: int, *, in_memory: bool) -> RunConfig:
    """A configuration in which one process stands for all of this machine's: their threads, their batches ahead."""
    data = {
        "num_workers": workers,
        "batches_ahead": config.data.batches_ahead * devices,
        "in_memory": config.data.in_memory and in_memory,
        # No part of what is measured.
        "val_dataset": config.data.val_dataset or config.data.train_dataset,
    }
    return replace(replace(config, "data", **data), "training", resume="", batch_size=batch_size, global_batch_size=0)


def _cached_share(path: str) -> float | None:
    """The share of a file's samples that lies in memory, before anything is read; None where nobody knows."""
    beton = open_beton(path)
    resident = resident_pages(beton.path)
    return None if resident is None else cached_share(resident, beton.ptrs, beton.sizes)


def _forecasts(
    stages: Sequence[Stage],
    measurements: Sequence[Measurement],
    devices: int,
    cores: int,
    taken: float,
    images_per_epoch: int,
) -> list[Forecast]:
    """What each stage will do on `cores` cores, of which other programs took `taken` while it was measured."""
    speeds = [(speed(m.loader), speed(m.step)) for m in measurements]
    # Loader and step each had at least the cores that they used.
    free = max(cores - taken, min(cores, max(one.busy_cores for pair in speeds for one in pair)))
    return [
        balance.forecast(stage, loader, times(step, devices), free, images_per_epoch)
        for stage, (loader, step) in zip(stages, speeds, strict=True)
    ]


def replace(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """`config` with other values in one section."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def _facts(
    config: RunConfig, beton: Beton, process: Process, cores: int, workers: int, available: int
) -> Circumstances:
    return Circumstances(
        device_type=process.device.type,
        cores=cores,
        workers=workers,
        in_memory=config.data.in_memory,
        file_bytes=beton.file_size,
        raw_bytes=3 * int(beton.pixels().sum()),
        available_bytes=available,
        jpeg_share=float((beton.modes == MODE_JPG).mean()),
        amp=config.training.amp,
        channels_last=config.model.channels_last,
        compile=config.model.compile,
    )


def _data_set(beton: Beton, facts: Circumstances, cached: float | None, devices: int) -> dict[str, Any]:
    return {
        "path": str(beton.path),
        "samples": len(beton),
        "jpeg_share": facts.jpeg_share,
        "median_height": int(np.median(beton.heights)),
        "median_width": int(np.median(beton.widths)),
        "file_bytes": facts.file_bytes,
        "raw_bytes": facts.raw_bytes,
        "in_memory": facts.in_memory,
        "measured_in_memory": facts.in_memory and facts.fits,
        "needed_bytes": facts.file_bytes
        if facts.in_memory
        else min(facts.file_bytes, devices * _PAGED_BYTES_PER_PROCESS),
        "available_bytes": facts.available_bytes,
        "fits": facts.fits,
        "cached_share": cached,
    }


def _run(config: RunConfig, num_classes: int, sizes: BatchSizes, steps: int) -> dict[str, Any]:
    return {
        "arch": config.model.arch,
        "num_classes": num_classes,
        "amp": config.training.amp,
        "compile": config.model.compile,
        "epochs": config.training.epochs,
        "batch_per_device": sizes.per_device,
        "accumulate": sizes.accumulate,
        "global_batch": sizes.global_batch,
        "steps_per_epoch": steps,
    }


def _stage(forecast: Forecast, measurement: Measurement) -> dict[str, Any]:
    return {
        "resolution": forecast.stage.resolution,
        "first_epoch": forecast.stage.first_epoch,
        "epochs": forecast.stage.epochs,
        "loader_images_per_s": forecast.loader.images_per_s,
        "loader_images_per_s_per_core": forecast.loader.per_core,
        "loader_busy_cores": forecast.loader.busy_cores,
        "loader_rounds": _rates(measurement.loader),
        "step_images_per_s": forecast.step.images_per_s,
        "step_busy_cores": forecast.step.busy_cores,
        "step_rounds_of_one_device": _rates(measurement.step),
        "images_per_s": forecast.images_per_s,
        "bottleneck": forecast.bottleneck,
        "cores_to_balance": forecast.cores_to_balance,
        "epoch_seconds": forecast.epoch_seconds,
    }


def _rates(samples: tuple[Timing, ...]) -> list[float]:
    return [sample.images / sample.seconds for sample in samples]


def _device_memory(device: torch.device) -> dict[str, int] | None:
    """Bytes of a GPU that the largest step took, and that it has; None on a CPU."""
    if device.type != "cuda":
        return None
    return {"peak_bytes": torch.cuda.max_memory_reserved(device), "total_bytes": torch.cuda.mem_get_info(device)[1]}


@contextlib.contextmanager
def _progress() -> Iterator[ProgressLine]:
    line = ProgressLine(plain_interval=10.0, console=Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        yield line
    finally:
        line.close()


@contextlib.contextmanager
def _out_of_memory(config: RunConfig) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for steps of {config.training.batch_size} images of up to "
            f"{config.resolution.max_res} pixels; lower --training.batch_size"
        ) from None
