"""Steps of every recipe of the configuration folders and of every criterion and option: waits, launches, peak memory.

PyTorch's detector of synchronising operations is set to error inside the step.
"""

import gc
import itertools
import json
import time
import traceback
from pathlib import Path
from typing import Any

import card
import numpy as np
import torch
import torchvision
import values

from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import DataSets
from ffcv_train.losses import CRITERIA
from ffcv_train.models import network
from ffcv_train.system.distributed import Process
from ffcv_train.training import distill, trainer

GIB = 2**30
DEVICE = torch.device("cuda", 0)
ALONE = Process(0, 1, 0, 1, DEVICE)
CLASSES = 1000
GPUS = 8  # that a recipe's global batch is meant for
WARM_UP, STEPS = 1, 3
FOLDERS = ("rn50_configs", "rn18_configs", "cifar_configs", "deit_configs", "finetune_configs")

RESNET = ("--model.arch=resnet18", "--resolution.max_res=64", "--resolution.min_res=64", "--training.batch_size=16")
DEIT = (
    *("--model.arch=cifar_deit_tiny", "--resolution.max_res=32", "--resolution.min_res=32"),
    *("--validation.resolution=32", "--training.batch_size=64", "--training.optimizer=adamw", "--lr.lr=5e-4"),
)
OPTIONS = {
    **{f"criterion {name}": (*RESNET, f"--loss.name={name}") for name in CRITERIA},
    "zipf on a transformer": (*DEIT, "--loss.name=zipf"),
    "no mixed precision": (*RESNET, "--training.amp=off"),
    "fp16": (*RESNET, "--training.amp=fp16"),
    "fp16, clipping, accumulation": (
        *(*RESNET, "--training.amp=fp16", "--training.clip_grad=1", "--training.accumulate=2"),
    ),
    "averaged weights, Nesterov, clipping": (
        *(*RESNET, "--training.ema_decay=0.9", "--training.nesterov=1", "--training.clip_grad=1"),
    ),
    "blurpool, not channels last": (*RESNET, "--model.use_blurpool=1", "--model.channels_last=0"),
    "RandAugment": (*DEIT, "--augment.policy=rand_augment"),
    "3-Augment": (*DEIT, "--augment.policy=three_augment"),
    "AugMix": (*RESNET, "--augment.policy=augmix", "--augment.magnitude=3"),
    "Lion": (*RESNET, "--training.optimizer=lion"),
    "Muon": (*DEIT, "--training.optimizer=muon"),
    "3-Augment in fp16": (*DEIT, "--augment.policy=three_augment", "--training.amp=fp16"),
    "erasing": (*DEIT, "--augment.erase=0.5"),
    "Mixup and CutMix per pair": (
        *(*DEIT, "--augment.mixup=0.8", "--augment.cutmix=1", "--augment.mix_mode=pair", "--loss.name=ls"),
    ),
    "online smoothing with Mixup": (*RESNET, "--augment.mixup=0.2", "--loss.name=ols"),
    "soft distillation": (
        *(*DEIT, "--model.arch=cifar_deit_tiny_distilled", "--distill.type=soft", "--distill.teacher_arch=resnet18"),
    ),
}
# Peak memory is a constant and a share per image: two batches tell both. Recorded for the page, compared by no test.
SIZES = {
    "resnet18, 224 px": ("--config-file=rn18_configs/rn18_16_epochs.yaml", 224),
    "resnet50, 192 px": ("--config-file=rn50_configs/rn50_16_epochs.yaml", 192),
    "resnet50, 224 px": ("--config-file=rn50_configs/rn50_16_epochs.yaml", 224),
    "deit_small_patch16_224": ("--config-file=deit_configs/deit_small_official.yaml", 224),
    "deit_base_patch16_224": ("--config-file=deit_configs/deit_base_maxsup.yaml", 224),
}
SMALL, LARGE = 64, 128
# What a step asks of the host, part by part.
PARTS = {
    "resnet18, bf16": ("rn18_configs/rn18_16_epochs.yaml",),
    "resnet50, bf16": ("rn50_configs/rn50_16_epochs.yaml",),
    "resnet50, fp16": ("rn50_configs/rn50_16_epochs.yaml", "--training.amp=fp16"),
    "deit_small_patch16_224, bf16": ("deit_configs/deit_small_official.yaml", "--training.global_batch_size=0"),
}
PARTS_BATCH, PARTS_STEPS = 128, 5


def main() -> None:
    """Measure all and report."""
    values.replace()
    _save_time()
    trainer.setup.check_length = lambda config, data, sizes: 1000  # type: ignore[assignment]
    # The data set of this probe has fewer classes than the networks.
    DataSets.class_counts = [1] * CLASSES  # type: ignore[assignment, method-assign]
    trainer.train_loader = lambda *_: None
    trainer.val_loader = lambda *_: None
    teacher = card.folder() / "teacher.pt"
    # Zeros: the networks of this probe are not initialised, and weights that are not finite are refused.
    weights = torchvision.models.resnet18().state_dict()
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, teacher)
    beton = card.arguments()["beton"]
    common = [
        *(f"--data.train_dataset={beton}", f"--data.val_dataset={beton}", f"--logging.folder={card.folder()}"),
        *(f"--model.num_classes={CLASSES}", "--training.device=cuda"),
    ]
    found: dict[str, dict[str, Any]] = {"recipes": {}, "options": {}, "sizes": {}, "parts": {}}
    same: dict[str, str] = {}
    root = Path(card.arguments()["root"])
    for file in sorted(itertools.chain.from_iterable((root / folder).glob("*.yaml") for folder in FOLDERS)):
        name = f"{file.parent.name}/{file.stem}"
        config = _recipe(file, common, teacher)
        # Schedules differ among recipes, not what a step does.
        step = to_dict(config) | {"lr": None, "logging": None, "validation": None, "resolution": None, "data": None}
        step["training"] |= {"epochs": 0, "clip_grad": bool(config.training.clip_grad)}
        key = json.dumps([step, config.resolution.max_res], sort_keys=True)
        if key in same:
            found["recipes"][name] = {"as": same[key]}
            continue
        same[key] = name
        found["recipes"][name] = _measured(config)
    for name, arguments in OPTIONS.items():
        more = [f"--distill.teacher={teacher}"] if "distillation" in name else []
        found["options"][name] = _measured(load_config(RunConfig, [*common, *arguments, *more]))
    for name, (file, side) in SIZES.items() if card.arguments()["sizes"] else ():
        found["sizes"][name] = _share_per_image([file.replace("=", f"={root}/"), *common], side)
    for name, (file, *more) in PARTS.items():
        options = [f"--config-file={root / file}", *common, f"--training.batch_size={PARTS_BATCH}", *more]
        found["parts"][name] = _by_part(load_config(RunConfig, options))
    card.report(found)


def _by_part(config: RunConfig) -> dict[str, dict[str, float]]:
    """Launches of each part of a step, and milliseconds of the host's cores, the least of some steps."""
    run = trainer.Trainer(config, ALONE)
    learner = run.learner
    learner.wrapped.train()
    learner.criterion.start_epoch(0)
    learner.board.start_epoch()
    launches: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {}

    def measured(part: str, action: Any) -> Any:
        def measure(*arguments: Any, **more: Any) -> Any:
            card.reset_counters()
            start = time.process_time()
            result = action(*arguments, **more)
            seconds[part][-1] += time.process_time() - start
            counts = card.counters()
            launches[part][-1] += counts.get("launches", 0) + counts.get("fills", 0)
            return result

        launches[part], seconds[part] = [], []
        return measure

    backward = torch.Tensor.backward
    learner.augment = measured("augmentation", learner.augment)
    learner.loss = measured("forward, criterion", learner.loss)
    torch.Tensor.backward = measured("backward", backward)
    for name in ("unscale_", "step", "update"):
        setattr(learner.scaler, name, measured("optimizer", getattr(learner.scaler, name)))
    if learner.ema is not None:
        learner.ema.update = measured("averages", learner.ema.update)
    try:
        for step in range(PARTS_STEPS):
            for values_of_parts, nothing in ((launches, 0), (seconds, 0.0)):
                for found in values_of_parts.values():
                    found.append(nothing)
            run.train_step(0, step, iter([_batch(run, step)]))
    finally:
        torch.Tensor.backward = backward
    return {part: {"launches": launches[part][-1], "host_ms": round(1e3 * min(seconds[part]), 1)} for part in launches}


def _share_per_image(arguments: list[str], side: int) -> dict[str, float]:
    """GiB that a step needs besides its images, and GiB per image."""
    one_side = [f"--resolution.min_res={side}", f"--resolution.max_res={side}", "--training.global_batch_size=0"]
    small, large = (
        _measured(load_config(RunConfig, [*arguments, *one_side, f"--training.batch_size={batch}"]))["peak_gib"]
        for batch in (SMALL, LARGE)
    )
    per_image = (large - small) / (LARGE - SMALL)
    return {"fixed_gib": round(small - SMALL * per_image, 2), "gib_per_image": round(per_image, 4)}


def _recipe(file: Path, common: list[str], teacher: Path) -> RunConfig:
    arguments = [f"--config-file={file}", *common]
    config = load_config(RunConfig, arguments)
    if config.training.global_batch_size:
        batch = config.training.global_batch_size // GPUS // config.training.accumulate
        arguments += ["--training.global_batch_size=0", f"--training.batch_size={batch}"]
    if config.distill.type != "none":
        arguments += [f"--distill.teacher={teacher}", "--distill.teacher_arch=resnet18"]
    return load_config(RunConfig, arguments)


def _measured(config: RunConfig) -> dict[str, Any]:
    """What a step of `config` costs the device and the host, at the largest side of training."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = trainer.Trainer(config, ALONE)
    run.learner.wrapped.train()
    run.learner.criterion.start_epoch(0)
    run.learner.board.start_epoch()
    for step in range(WARM_UP):
        run.train_step(0, step, iter([_batch(run, step)] * run.sizes.accumulate))
    batches = [_batch(run, WARM_UP + step) for step in range(STEPS)]
    waited = ""
    card.reset_counters()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(batches, start=WARM_UP):
            run.train_step(0, step, iter([batch] * run.sizes.accumulate))
    except RuntimeError as error:
        place = [line for line in traceback.extract_tb(error.__traceback__) if "ffcv_train" in line.filename][-1]
        waited = f"{error} at {Path(place.filename).name}:{place.lineno} ({place.line})"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    counts = card.counters()
    peak = torch.cuda.max_memory_allocated() / GIB
    return {
        "batch": run.sizes.per_device,
        "side": config.resolution.max_res,
        "waited": waited,
        "waits": {name: number for name, number in counts.items() if name.startswith("wait") or "pageable" in name},
        "launches": round((counts["launches"] + counts.get("fills", 0)) / STEPS),
        "peak_gib": round(peak, 3),
        "missing": [name for name in counts if name.startswith("missing")],
    }


def _batch(run: trainer.Trainer, step: int) -> Batch:
    count, side = run.sizes.per_device, run.config.resolution.max_res
    images = torch.empty(count, side, side, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
    labels = torch.zeros(count, dtype=torch.int64).to(DEVICE)
    return Batch(images, labels, labels, np.arange(count) + count * step)


def _save_time() -> None:
    """Leave out what other tests look at: weights, random or a file's, and the check of a network's smallest side."""
    for name in ("normal_", "uniform_", "erfinv_"):
        setattr(torch.Tensor, name, lambda self, *_, **__: self)
    network.check_resolution = lambda *_: CLASSES
    distill.check_resolution = lambda *_: None
    trainer.setup.finetune.check = lambda *_: None
    gc.freeze()  # a collection goes through what the runs have made only


main()
