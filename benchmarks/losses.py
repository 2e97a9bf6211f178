"""What each criterion costs beside plain cross-entropy: alone, and as a part of a training step.

    python -m benchmarks.losses --arch cifar_resnet20 --side 32 --classes 10 --batch 128 --json losses.json

In each round every criterion has its turn once, in an order drawn anew. A step is forward pass, criterion, backward
pass and SGD update under bf16 autocast, on random images; every criterion trains a copy of the same network. Alone, a
criterion has the same batch of logits forward and backward; for zipf the dense votes are counted in. The excess is
each round's difference to its own ce. On a CPU times are the process's CPU time, with one thread unless --threads says
otherwise, which other processes disturb less than time of day; on a GPU time of day around a synchronised device.
Figures are medians [quartiles]; warm-up rounds are not counted.
"""

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.config.schema import LossConfig, ModelConfig, TrainingConfig
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.losses.base import Criterion
from ffcv_train.losses.zipf import Zipf
from ffcv_train.models.factory import check_resolution, create_model
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.training.optim import create_optimizer

WARM_UP = 3
Work = Callable[[], None]
Times = dict[str, list[float]]


def main() -> None:
    """Parse, measure, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--arch", default="cifar_resnet20", help="network, as model.arch (cifar_resnet20)")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels (32)")
    parser.add_argument("--classes", type=int, default=10, help="number of classes (10)")
    parser.add_argument("--batch", type=int, default=128, help="images per step (128)")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the criteria alone (40)")
    parser.add_argument("--steps", type=int, default=40, help="rounds of training steps; 0: the criteria alone (40)")
    parser.add_argument("--names", default=",".join(CRITERIA), help="criteria beside ce (all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on a CPU (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute (cpu)")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    arguments = parser.parse_args()
    names = ["ce", *(name for name in arguments.names.split(",") if name != "ce")]
    if unknown := [name for name in names if name not in CRITERIA]:
        raise UserError(f"--names: {unknown[0]!r} is none of {', '.join(CRITERIA)}")
    check_least(arguments, side=1, batch=1, threads=1, classes=2, rounds=2)
    if arguments.steps < 0 or arguments.steps == 1:
        raise UserError("--steps must be 0 or at least 2")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda, but PyTorch sees no GPU; use --device=cpu")
    check_folders(arguments)
    torch.set_num_threads(arguments.threads)

    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch=arguments.arch), arguments.classes)
    check_resolution(model, arguments.side, arguments.arch)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(arguments.batch, 3, arguments.side, arguments.side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(arguments.classes, (arguments.batch,), device=device)

    def new(name: str) -> Criterion:
        counts = [1] * arguments.classes  # what they are costs nothing
        return create_criterion(LossConfig(name=name), arguments.classes, epochs=1, class_counts=counts).to(device)

    alone = measure({name: alone_with(new(name), model, images, labels) for name in names}, arguments.rounds, device)
    steps = {}
    if arguments.steps:
        steps = measure({name: step_with(new(name), model, images, labels) for name in names}, arguments.steps, device)
    rows = [summarise(name, alone, steps) for name in names]
    print(table(rows))
    if arguments.json is not None:
        facts = {name: getattr(arguments, name) for name in ("arch", "side", "classes", "batch", "rounds", "steps")}
        measured = {**facts, "criteria": rows, "seconds": {"alone": alone, "step": steps}}
        arguments.json.write_text(
            json.dumps({**measured, "environment": describe_environment(device)}, indent=1) + "\n"
        )


def alone_with(criterion: Criterion, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Work:
    """Forward and backward of a criterion on the network's bf16 logits; for zipf, voting before it."""
    network = copy.deepcopy(model).train()
    maps: list[torch.Tensor] = []
    criterion.attach(network, images.shape[-1])
    head = criterion.head if isinstance(criterion, Zipf) else None
    if head is not None:
        head.module.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        logits = network(images)
    logits.requires_grad_()

    def work() -> None:
        if head is not None:
            with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
                head.top_classes = head.logits(maps[0]).max(dim=-1).indices
        logits.grad = None
        criterion(logits, labels).backward()

    return work


def step_with(criterion: Criterion, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Work:
    """A training step of a copy of the network, as the trainer's."""
    network = copy.deepcopy(model).train()
    criterion.attach(network, images.shape[-1])
    optimizer = create_optimizer(network, TrainingConfig(), images.device)

    def work() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def measure(works: dict[str, Work], rounds: int, device: torch.device) -> Times:
    """Seconds of each work in each round, the works of a round in random order."""
    order = random.Random(0)
    seconds: Times = {name: [] for name in works}
    for number in range(rounds + WARM_UP):
        for name in order.sample(list(works), len(works)):
            taken = _timed(works[name], device)
            if number >= WARM_UP:
                seconds[name].append(taken)
    return seconds


def summarise(name: str, alone: Times, steps: Times) -> dict[str, Any]:
    """Medians and quartiles of one criterion, in milliseconds and in percent of a step with cross-entropy."""
    row: dict[str, Any] = {"name": name, "alone_ms": _spread([1e3 * s for s in alone[name]])}
    row["alone_excess_ms"] = _spread([1e3 * (a - b) for a, b in zip(alone[name], alone["ce"], strict=True)])
    if steps:
        plain = median(steps["ce"])
        row["step_ms"] = _spread([1e3 * s for s in steps[name]])
        row["step_excess_percent"] = _spread(
            [100 * (a - b) / plain for a, b in zip(steps[name], steps["ce"], strict=True)]
        )
        row["alone_excess_percent_of_step"] = row["alone_excess_ms"]["median"] / (10 * plain)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A line per criterion: median [quartiles]."""
    heads = [
        "criterion",
        "alone, ms",
        "excess alone, ms",
        "step, ms",
        "excess in the step, %",
        "excess alone / step, %",
    ]
    keys = ["alone_ms", "alone_excess_ms", "step_ms", "step_excess_percent"]
    lines = []
    for row in rows:
        cells = [
            f"{row[key]['median']:.2f} [{row[key]['low']:.2f}, {row[key]['high']:.2f}]" for key in keys if key in row
        ]
        if "step_ms" in row:
            cells.append(f"{row['alone_excess_percent_of_step']:.2f}")
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    columns = lines[0].count("|") - 1
    return "\n".join([f"| {' | '.join(heads[:columns])} |", "|" + " --- |" * columns, *lines])


def _timed(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high}


if __name__ == "__main__":
    run_main(main)
