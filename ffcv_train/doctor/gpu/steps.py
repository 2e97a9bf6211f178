"""Rows: the trainer's steps on the device are those of a float64 run on the CPU, as far as float32 can be."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.doctor.gpu.bench import CLASSES, CPU, Bench, exact_float32, on_device, same_kernels
from ffcv_train.doctor.gpu.figures import Figure, distance, total_distance
from ffcv_train.models.factory import create_model

_STEPS, _OPTIONS_STEPS = 10, 4
_TIMES_WORSE = 10.0
"""What a device's float32 may lie further from float64 than the CPU's, for other orders of sums. TF32, of 10 bits
instead of 23, lies a hundred times further."""
_FLOOR, _CEILING = 5e-3, 0.05
_STEADY = ("--loss.name=ce", "--lr.lr_schedule_type=step", "--lr.lr=1e-3", "--training.batch_size=16")
_HALF = 0.02  # of the way: what is left of fp16's rounding where kernels are the same


class _End(NamedTuple):
    start: list[Tensor]
    weights: list[Tensor]
    averages: list[Tensor]


def ten_steps(bench: Bench) -> list[Figure]:
    """Ten steps of a ResNet-18."""
    options = ("--model.arch=resnet18", "--resolution.min_res=64", "--resolution.max_res=64")
    return _against_float64(bench, bench.config(*_STEADY, *options), _STEPS)


def clipping_passes_averages(bench: Bench) -> list[Figure]:
    """Clipped gradients of two passes per step, and averaged weights."""
    options = ("--training.clip_grad=0.5", "--training.accumulate=2", "--training.ema_decay=0.7")
    return _against_float64(bench, bench.config(*_STEADY, *options), _OPTIONS_STEPS)


def overflow(bench: Bench) -> list[Figure]:
    """fp16 whose first step overflows: it changes no weight, and what follows is as if it had not been."""
    config = bench.config(*_STEADY, "--training.amp=fp16")
    batches = [on_device(batch, bench.device) for batch in bench.batches(config, 5)]
    with bench.trainer(config) as run, same_kernels():
        # Too much for fp16 once, and then 2^10.
        run.learner.scaler = torch.amp.GradScaler(bench.device.type, init_scale=2.0**50, backoff_factor=2.0**-40)
        start = _copies(run.learner.model.parameters())
        run.train_step(0, 0, iter(batches))
        after_first = _copies(run.learner.model.parameters())
        scale = run.learner.scaler.get_scale()
        for step, batch in enumerate(batches[1:], start=1):
            run.train_step(0, step, iter([batch]))
        found = _copies(run.learner.model.parameters())
    with bench.trainer(config) as run, same_kernels():
        run.learner.scaler = torch.amp.GradScaler(bench.device.type, init_scale=2.0**10)
        for step, batch in enumerate(batches[1:], start=1):
            run.train_step(0, step, iter([batch]))
        wanted = _copies(run.learner.model.parameters())
    moved = max(distance(a, b) for a, b in zip(after_first, start, strict=True))
    return [
        Figure("weights moved by the step that overflowed", moved, most=0),
        Figure("scale then", distance(torch.tensor(scale), torch.tensor(2.0**10)), most=0),
        Figure("share of the way apart from a run without it", total_distance(found, wanted, start), most=_HALF),
    ]


def _against_float64(bench: Bench, config: RunConfig, steps: int) -> list[Figure]:
    batches = bench.batches(config, 8)
    wanted = _run(bench, config, batches, steps, CPU, torch.float64)
    plain = _run(bench, config, batches, steps, CPU, torch.float32)
    found = _run(bench, config, batches, steps, bench.device, torch.float32)
    figures = []
    for name in ("weights", "averages"):
        ends = [getattr(end, name) for end in (found, plain, wanted)]
        if ends[0]:
            bound = _TIMES_WORSE * total_distance(ends[1], ends[2], wanted.start)
            bound = min(max(bound, _FLOOR), _CEILING)
            apart = total_distance(ends[0], ends[2], wanted.start)
            figures.append(Figure(f"{name}: share of the way apart from float64", apart, most=bound))
    return figures


def _run(
    bench: Bench, config: RunConfig, batches: Sequence[Batch], steps: int, device: torch.device, dtype: torch.dtype
) -> _End:
    """Weights before and after, and their averages where the run has them."""
    torch.manual_seed(0)
    model = create_model(config.model, CLASSES).to(dtype)
    for name, module in model.named_modules():
        # Branches begin at zero: else rectified units near it, which rounding switches, are most of the difference.
        if name.endswith("bn2"):
            nn.init.zeros_(module.weight)
    there = [on_device(batch, device) for batch in batches]
    with bench.trainer(config, device, model) as run, exact_float32():
        run.learner.network.normalise.dtype = dtype
        start = _copies(run.learner.model.parameters())
        for step in range(steps):
            own = [there[(step * run.sizes.accumulate + i) % len(there)] for i in range(run.sizes.accumulate)]
            run.train_step(0, step, iter(own))
        averages = _copies(run.learner.ema.module.parameters()) if run.learner.ema is not None else []
        return _End(start, _copies(run.learner.model.parameters()), averages)


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]
