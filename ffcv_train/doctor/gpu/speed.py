"""Rows: images per second of the step, beside a plain loop in the same process, and of loader and step together."""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from ffcv_train.data.convert.write import WriteConfig
from ffcv_train.data.sources.indexed import IndexedSource
from ffcv_train.doctor.balance import Stage
from ffcv_train.doctor.gpu.bench import CLASSES, Bench, picture, write
from ffcv_train.doctor.gpu.figures import Figure, NotJudged
from ffcv_train.doctor.gpu.kernels import need_compiler
from ffcv_train.doctor.timing import StepTimer, time_loader
from ffcv_train.models.factory import create_model
from ffcv_train.system.environment import device_name
from ffcv_train.training.trainer import Trainer

OF_PLAIN, TOGETHER = 0.98, 0.97
_CLASSES = 1000
_GIB = 2**30
_ROUNDS, _SECONDS, _LOADER_SECONDS = 5, 0.6, 3.0
_RAW_IMAGES, _RAW_SIDE = 4096, 128
# FFCV's tables (rn18 on one A100, rn50 on eight): minutes of 88 epochs less those of 16, over 72 epochs of ImageNet at
# sides that grow from 160 to 192, per GPU.
_IMAGENET = 1_281_167
PUBLISHED_A100 = {
    "resnet50": 72 * _IMAGENET / 8 / (60 * (77.2 - 14.9)),
    "resnet18": 72 * _IMAGENET / (60 * (187.3 - 35.0)),
}


@dataclass(frozen=True)
class Case:
    """A step to be timed: network, side, precision."""

    arch: str
    side: int
    amp: str
    compiled: bool = False
    blurpool: bool = False

    def __str__(self) -> str:
        return f"{self.arch} {self.side} px {self.amp}{' compiled' if self.compiled else ''}"


# What tells most comes first, should time end.
CASES = (
    Case("resnet50", 224, "bf16"),
    Case("resnet50", 224, "fp16"),
    Case("resnet18", 224, "bf16"),
    Case("deit_small_patch16_224", 224, "bf16"),
    *(Case("resnet50", side, amp) for side in (192, 160) for amp in ("bf16", "fp16")),
    *(Case("resnet18", side, "bf16") for side in (192, 160)),
    # One side, for each is compiled anew, which takes about a minute.
    Case("resnet50", 224, "bf16", compiled=True),
)
LOADED = ("resnet50", 224)
FFCVS_SIDES = (160, 192)


def step(bench: Bench, case: Case) -> list[Figure]:
    """The trainer's step beside the plain loop, in turns."""
    _only_gpus(bench)
    if case.amp == "bf16" and bench.amp != "bf16":
        raise NotJudged("this card only emulates bf16")
    if case.compiled:
        need_compiler(bench)
    ours, plain = _beside_plain(bench, case)
    return [
        Figure("of a plain loop", ours / plain, least=OF_PLAIN),
        Figure("images/s", ours),
        Figure("the plain loop's", plain),
    ]


def beside_ffcv(bench: Bench) -> list[Figure]:
    """The step alone as FFCV ran it, in fp16 with BlurPool, beside the images/s of its whole runs on this card."""
    _only_gpus(bench)
    name = device_name(bench.device)
    if "A100" not in name or "MIG" in name:
        told = ", ".join(f"{published:,.0f} for {arch}" for arch, published in PUBLISHED_A100.items())
        raise NotJudged(f"FFCV has published times of the A100 only, where they are {told} images/s per GPU")
    found = []
    for arch, published in PUBLISHED_A100.items():
        speeds = []
        for side in FFCVS_SIDES:
            case = Case(arch, side, "fp16", blurpool=True)
            with _trainer(bench, case) as run:
                timer = StepTimer(run.learner, Stage(side, 0, 1), _CLASSES)
                samples = [timer.time(_SECONDS) for _ in range(_ROUNDS)]
                speeds.append(statistics.median(sample.images / sample.seconds for sample in samples))
            torch.cuda.empty_cache()
        share = statistics.harmonic_mean(speeds) / published
        # FFCV's machines have the card of 400 W.
        found.append(Figure(f"{arch}: of FFCV's {published:,.0f} images/s", share, least=1 if "SXM" in name else None))
        found += [Figure(f"{side} px", speed) for side, speed in zip(FFCVS_SIDES, speeds, strict=True)]
    return found


def loader_and_step(bench: Bench) -> list[Figure]:
    """The step on batches of the loader, of raw pixels, as a share of the step alone."""
    _only_gpus(bench)
    path = bench.folder / "raw.beton"
    write(
        WriteConfig(data_dir="synthetic", write_path=str(path), write_mode="raw", num_workers=2),
        IndexedSource(_Pictures()),
    )
    case = Case(*LOADED, bench.amp)
    options = (f"--data.train_dataset={path}", "--data.num_workers=0", "--data.batches_ahead=4")
    with _trainer(bench, case, *options) as run:
        timer = StepTimer(run.learner, Stage(case.side, 0, 1), _CLASSES)
        loader = time_loader(run.train_loader, case.side, _LOADER_SECONDS, epoch=0)
        alone = [timer.time(_SECONDS) for _ in range(_ROUNDS)]
        step_speed = statistics.median(sample.images / sample.seconds for sample in alone)
        loader_speed = loader.images / loader.seconds
        together = statistics.median(_together(bench, run, epoch, case.side) for epoch in range(3))
    figures = [Figure("images/s", together), Figure("step alone", step_speed), Figure("loader alone", loader_speed)]
    if loader_speed < step_speed:
        raise NotJudged("the cores feed the loader less than the step takes; see the doctor", figures)
    return [Figure("of the step alone", together / step_speed, least=TOGETHER), *figures]


def _together(bench: Bench, run: Trainer, epoch: int, side: int) -> float:
    """Images/s of an epoch from its second step on, when the pipeline is full."""
    run.train_loader.set_resolution(side)
    run.train_loader.set_epoch(epoch)
    with contextlib.closing(run.train_loader.epoch()) as batches:
        run.train_step(0, 0, batches)
        bench.synchronize()
        start, count = time.perf_counter(), run.steps - 1
        for step in range(count):
            run.train_step(0, step + 1, batches)
        bench.synchronize()
    return count * run.sizes.per_device / (time.perf_counter() - start)


class _Pictures:
    """Raw images whose labels need no decoding."""

    def __init__(self) -> None:
        self.targets = [number % CLASSES for number in range(_RAW_IMAGES)]
        self.classes = [f"class{label}" for label in range(CLASSES)]
        self._images = [Image.fromarray(picture(number, _RAW_SIDE, _RAW_SIDE)) for number in range(64)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._images[index % len(self._images)], self.targets[index]


def _beside_plain(bench: Bench, case: Case) -> tuple[float, float]:
    """Images/s of the trainer's step and of the plain loop."""
    with _trainer(bench, case) as run:
        timer = StepTimer(run.learner, Stage(case.side, 0, 1), _CLASSES)
        plain = _plain_loop(bench, case, run.sizes.per_device)
        plain(2)
        ours, others = [], []
        for _ in range(_ROUNDS):
            sample = timer.time(_SECONDS)
            ours.append(sample.images / sample.seconds)
            others.append(plain(max(1, round(sample.images / run.sizes.per_device))))
    return statistics.median(ours), statistics.median(others)


def _trainer(bench: Bench, case: Case, *more: str) -> contextlib.AbstractContextManager[Trainer]:
    sides = (f"--resolution.min_res={case.side}", f"--resolution.max_res={case.side}")
    how = (f"--training.amp={case.amp}", f"--model.compile={int(case.compiled)}", "--loss.name=ce")
    network = (f"--model.arch={case.arch}", f"--model.use_blurpool={int(case.blurpool)}")
    batch = f"--training.batch_size={batch_size(bench.device)}"
    options = (*network, *sides, f"--validation.resolution={case.side}", *how, batch, *more)
    return bench.trainer(bench.config(*options, f"--model.num_classes={_CLASSES}"))


def batch_size(device: torch.device) -> int:
    """Images per step, by the card's memory, of which two networks take a share."""
    total = torch.cuda.get_device_properties(device).total_memory / _GIB
    return 256 if total > 38 else 128 if total > 19 else 64


def _plain_loop(bench: Bench, case: Case, count: int) -> Callable[[int], float]:
    """What a tutorial would write: a function of a number of steps that returns images/s."""
    model: nn.Module = create_model(bench.config(f"--model.arch={case.arch}").model, _CLASSES)
    model = model.to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=case.amp == "fp16")
    dtype = torch.bfloat16 if case.amp == "bf16" else torch.float16
    pixels = torch.randint(0, 256, (count, case.side, case.side, 3), dtype=torch.uint8, device=bench.device)
    images, labels = pixels.permute(0, 3, 1, 2), torch.randint(0, _CLASSES, (count,), device=bench.device)
    mean = torch.tensor([123.675, 116.28, 103.53], device=bench.device).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375], device=bench.device).view(1, 3, 1, 1)
    network = torch.compile(model, dynamic=False) if case.compiled else model

    def loop(number: int) -> float:
        bench.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            x = ((images - mean) / std).to(dtype)
            with torch.autocast("cuda", dtype):
                loss = nn.functional.cross_entropy(network(x).float(), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        bench.synchronize()
        return number * count / (time.perf_counter() - start)

    return loop


def _only_gpus(bench: Bench) -> None:
    if not bench.on_gpu:
        raise NotJudged("speed is of a GPU; see benchmarks/ for a CPU's")
