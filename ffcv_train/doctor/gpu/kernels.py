"""Rows: what steps ask of the device: no waiting, no change of layout, one compilation per resolution."""

import dataclasses
import os
import re
import shutil
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import FinetuneConfig, ModelConfig, RunConfig
from ffcv_train.doctor.gpu.bench import CLASSES, Bench, exact_float32, on_device
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, relative_distance, total_distance
from ffcv_train.models.factory import create_model

_STEPS = 20
_BATCH = 16
_REPLAYED_STEPS = 6  # of which the third is the first that is replayed
_APART = 0.05  # of the way: other kernels' rounding switches rectified units, two of a CPU's are 0.005 apart
_OF_TRITON = (7, 0)
_CHANGES_LAYOUT = re.compile("nchwToNhwc|nhwcToNchw", re.IGNORECASE)
_CONVERTS = re.compile("convertTensor", re.IGNORECASE)
FOLDERS = "*_configs"


def no_waits(bench: Bench) -> list[Figure]:
    """Steps of every recipe of the folders here, one of those that differ in schedule only, at a small batch."""
    if not bench.on_gpu:
        raise NotJudged("the host does what a CPU is asked for itself")
    recipes = distinct_recipes(bench, Path())
    if not recipes:
        raise NotJudged(f"no {FOLDERS}/*.yaml in the working folder; start it in the repository")
    waiting: list[str] = []
    tried = 0
    for name, config in recipes.items():
        if bench.out_of_time:
            break
        told = _first_wait(bench, config)
        tried += 1
        if told:
            waiting.append(f"{name}: {told}")
    if waiting:
        raise RuntimeError(f"{len(waiting)} of {tried} recipes wait for the device: {'; '.join(waiting)}")
    left = len(recipes) - tried
    not_tried = [Figure("not tried, for no time was left", left)] if left else []
    return [Figure("recipes", tried, least=1), Figure("that wait", 0, most=0), *not_tried]


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
    if config.training.amp == "bf16":
        options.append(f"--training.amp={bench.amp}")
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
    sides = ("--resolution.min_res=224", "--resolution.max_res=224")
    config = bench.config("--model.arch=resnet50", f"--training.amp={bench.amp}", "--training.batch_size=32", *sides)
    (batch,) = bench.batches(config, 1)
    there = on_device(batch, bench.device)
    with bench.trainer(config) as run:
        run.train_step(0, 0, iter([there]))
        names = launched(bench, lambda: run.train_step(0, 1, iter([there])))
    if not names:
        raise NotJudged("the profiler saw no kernel; CUPTI may be forbidden here")
    changing = sorted(name for name in names if _CHANGES_LAYOUT.search(name))
    which = f" ({'; '.join(dict.fromkeys(changing))})" if changing else ""
    return [
        Figure(f"that change the layout{which}", len(changing), most=0),
        Figure("kernels", len(names), least=1),
        # A layout, or a type after a sum in float32: its name does not say.
        Figure("convertTensor", sum(bool(_CONVERTS.search(name)) for name in names)),
    ]


def launched(bench: Bench, action: Callable[[], Any]) -> list[str]:
    """The names of the kernels that `action` has launched, by PyTorch's profiler."""
    bench.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        action()
        bench.synchronize()
    return [event.name for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]


def compilation(bench: Bench) -> list[Figure]:
    """A network over two resolutions: one graph each, no breaks, and logits of the network as it is."""
    need_compiler(bench)
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


def replayed(bench: Bench) -> list[Figure]:
    """Steps of a network that is compiled, and that is replayed as CUDA graphs, beside those of one that is neither."""
    need_compiler(bench)
    options = ("--loss.name=ce", "--lr.lr_schedule_type=step", "--lr.lr=1e-3", "--training.batch_size=16")
    batches = [on_device(batch, bench.device) for batch in bench.batches(bench.config(*options), _REPLAYED_STEPS)]
    start: list[Tensor] = []
    ends: dict[str, list[Tensor]] = {}
    for mode in ("", "default", "reduce-overhead"):
        torch._dynamo.reset()
        more = ("--model.compile=1", f"--model.compile_mode={mode}") if mode else ()
        with bench.trainer(bench.config(*options, *more)) as run, exact_float32():
            parameters = list(run.learner.model.parameters())
            start = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
            for step, batch in enumerate(batches):
                run.train_step(0, step, iter([batch]))
            ends[mode] = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    torch._dynamo.reset()
    return [
        Figure(f"{mode}: share of the way apart", total_distance(ends[mode], ends[""], start), most=_APART)
        for mode in ("default", "reduce-overhead")
    ]


def need_compiler(bench: Bench) -> None:
    """Raise `NotJudged` where nothing can be compiled for this device."""
    if not bench.on_gpu:
        raise NotJudged("what is compiled for a CPU is no proof for a GPU")
    if torch.cuda.get_device_capability(bench.device) < _OF_TRITON:
        raise NotJudged("Triton compiles for compute capability 7.0 and above")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise NotJudged("Triton needs a C compiler: install gcc, or name one in the environment variable CC")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        raise NotJudged("Triton needs Python's headers: install python3-dev, or what your system calls it")
