"""Rows: what steps ask of the device: no waiting, no change of layout, one compilation per resolution."""

import dataclasses
import re
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import FinetuneConfig, ModelConfig, RunConfig
from ffcv_train.doctor.gpu.bench import CLASSES, Bench, exact_float32, on_device
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, relative_distance
from ffcv_train.models.factory import create_model

_STEPS = 20
_BATCH = 16
_CHANGES_LAYOUT = re.compile("nchwToNhwc|nhwcToNchw|convertTensor", re.IGNORECASE)
FOLDERS = "*_configs"


def no_waits(bench: Bench) -> list[Figure]:
    """Steps of every recipe of the folders here, one of those that differ in schedule only, at a small batch."""
    if not bench.on_gpu:
        raise NotJudged("the host does what a CPU is asked for itself")
    recipes = distinct_recipes(bench, Path())
    if not recipes:
        raise NotJudged(f"no {FOLDERS}/*.yaml in the working folder; start it in the repository")
    waiting: list[str] = []
    for name, config in recipes.items():
        told = _first_wait(bench, config)
        if told:
            waiting.append(f"{name}: {told}")
    if waiting:
        raise RuntimeError(f"{len(waiting)} of {len(recipes)} recipes wait for the device: {'; '.join(waiting)}")
    return [Figure("recipes", len(recipes), least=1), Figure("that wait", 0, most=0)]


def distinct_recipes(bench: Bench, root: Path) -> dict[str, RunConfig]:
    """The recipes below `root` that differ in what a step does, by name, on the synthetic images, at a small batch."""
    found: dict[str, RunConfig] = {}
    known: list[dict[str, Any]] = []
    for file in sorted(root.glob(f"{FOLDERS}/*.yaml")):
        config = _small(bench, file)
        # Schedules differ among recipes, not what a step does.
        step = to_dict(config)
        for section in ("lr", "logging", "validation", "data"):
            step.pop(section)
        step["training"].pop("epochs")
        step["resolution"] = config.resolution.max_res
        if step not in known:
            known.append(step)
            found[f"{file.parent.name}/{file.stem}"] = config
    return found


def _small(bench: Bench, file: Path) -> RunConfig:
    """A recipe on the synthetic images; what it starts from, or is taught by, is a network of random weights."""
    options = [f"--config-file={file}", *bench.data_options(), f"--training.batch_size={_BATCH}"]
    options += ["--training.global_batch_size=0", "--data.format=beton", "--data.cache=0"]
    config = load_config(RunConfig, options)
    if config.training.ema_decay:  # that of a long run is refused for a short one
        options.append("--training.ema_decay=0.9")
    if config.model.weights or config.finetune != FinetuneConfig():
        options.append(f"--model.weights={_random_weights(bench, config.model)}")
    if config.distill.type != "none":
        teacher = _random_weights(bench, ModelConfig(arch="resnet18"))
        options += [f"--distill.teacher={teacher}", "--distill.teacher_arch=resnet18"]
    return load_config(RunConfig, options)


def _random_weights(bench: Bench, config: ModelConfig) -> Path:
    path = bench.folder / f"{config.arch.replace('/', '_')}.pt"
    if not path.is_file():
        model = create_model(dataclasses.replace(config, weights=""), CLASSES)
        torch.save(model.state_dict(), path)
    return path


def _first_wait(bench: Bench, config: RunConfig) -> str:
    """Where a step makes the host wait; empty where none does."""
    (batch,) = bench.batches(config, 1)
    there = on_device(batch, bench.device)
    with bench.trainer(config) as run, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        run.train_step(0, 0, iter([there] * run.sizes.accumulate))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 1 + _STEPS):
                run.train_step(0, step, iter([there] * run.sizes.accumulate))
        except RuntimeError as error:
            places = [line for line in traceback.extract_tb(error.__traceback__) if "ffcv_train" in line.filename]
            return f"{Path(places[-1].filename).name}:{places[-1].lineno}, {error}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ""


def layout(bench: Bench) -> list[Figure]:
    """A ResNet-50 in bf16, or fp16 where there is none: cuDNN takes channels last as they lie."""
    if not bench.on_gpu:
        raise NotJudged("layouts are cuDNN's business")
    amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    sides = ("--resolution.min_res=224", "--resolution.max_res=224")
    config = bench.config("--model.arch=resnet50", f"--training.amp={amp}", "--training.batch_size=32", *sides)
    (batch,) = bench.batches(config, 1)
    there = on_device(batch, bench.device)
    with bench.trainer(config) as run:
        run.train_step(0, 0, iter([there]))
        names = launched(bench, lambda: run.train_step(0, 1, iter([there])))
    if not names:
        raise NotJudged("the profiler saw no kernel; CUPTI may be forbidden here")
    changing = [name for name in names if _CHANGES_LAYOUT.search(name)]
    return [Figure("kernels", len(names), least=1), Figure("that change the layout", len(changing), most=0)]


def launched(bench: Bench, action: Callable[[], Any]) -> list[str]:
    """The names of the kernels that `action` has launched, by PyTorch's profiler."""
    bench.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        action()
        bench.synchronize()
    return [event.name for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]


def compilation(bench: Bench) -> list[Figure]:
    """A network over two resolutions: one graph each, no breaks, and logits of the network as it is."""
    if not bench.on_gpu:
        raise NotJudged("what is compiled for a CPU is no proof for a GPU")
    options = ("--model.arch=cifar_resnet20", "--model.compile=1", "--resolution.min_res=32", "--resolution.max_res=40")
    config = bench.config(*options, "--resolution.step=8", "--resolution.end_ramp=1")
    torch._dynamo.reset()
    counters.clear()
    apart = 0.0
    with bench.trainer(config) as run, exact_float32():
        for side in (32, 40):
            (batch,) = bench.batches(bench.config(f"--resolution.max_res={side}", f"--resolution.min_res={side}"), 1)
            there = on_device(batch, bench.device)
            for step in range(2):
                run.train_step(0, step, iter([there]))
            images = run.learner.network.normalise(there.images)
            # In training mode, as it was compiled; BatchNorm's statistics move, which its output does not show.
            apart = max(apart, relative_distance(run.learner.wrapped(images), run.learner.model(images)))
    graphs = counters["stats"]["unique_graphs"]
    breaks = sum(counters["graph_break"].values())
    return [
        Figure("graphs of two resolutions", graphs, least=2, most=2),
        Figure("graph breaks", breaks, most=0),
        Figure("logits apart", apart, most=1e-3),
    ]
