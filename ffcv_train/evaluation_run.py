"""From a checkpoint and a data set to metrics at every resolution asked for: what eval.py does."""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from ffcv_train.build import val_loader
from ffcv_train.checkpoint import load_checkpoint
from ffcv_train.config import RunConfig, load_config
from ffcv_train.data.beton import Beton, check_labels, open_beton
from ffcv_train.data.loader import Batch, Loader
from ffcv_train.distributed import Process
from ffcv_train.environment import describe_environment
from ffcv_train.errors import UserError
from ffcv_train.evaluator import AMP_DTYPES, evaluate
from ffcv_train.models.factory import check_resolution, create_model, pretrained_normalisation
from ffcv_train.models.weights import load_weights, read_state_dict
from ffcv_train.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.progress import ProgressLine
from ffcv_train.records import disk_errors

DESCRIPTION = """Evaluate a checkpoint: top-1, top-5, NLL and calibration error, each sample exactly once.

python eval.py --checkpoint runs/my_run/final.pt --data.val_dataset=val.beton --validation.resolution=224,256
torchrun --nproc_per_node=8 eval.py --checkpoint …     the same numbers, sooner

A checkpoint of train_imagenet.py carries its configuration, and every section below starts from that. Other
checkpoints (torchvision, timm, plain state dicts, safetensors) need --model.arch.
"""


@dataclass(frozen=True)
class Subject:
    """What is evaluated, as far as the checkpoint itself says it; a foreign checkpoint says nothing but its path."""

    path: str
    ours: bool
    config: dict[str, Any]
    has_ema: bool = False
    arch: str = ""
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    epoch: int | None = None


@dataclass(frozen=True)
class Request:
    """A resolved command line of eval.py."""

    subject: Subject
    config: RunConfig
    weights: str
    output: Path | None
    ignore_class_names: bool


def parse_request(argv: Sequence[str]) -> Request:
    """Resolve eval.py's arguments; the checkpoint's own configuration lies below YAML files and the command line.

    Raises `UserError` for what does not fit together, as far as that shows without the data set.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own = parser.add_argument_group("evaluation")
    own.add_argument("--checkpoint", metavar="FILE", help="the checkpoint to evaluate")
    own.add_argument("--output", metavar="FILE", help="write the metrics to this JSON file")
    own.add_argument(
        "--weights",
        choices=("auto", "ema", "model"),
        default="auto",
        help="averaged or plain weights; auto: averaged where the checkpoint has them",
    )
    own.add_argument(
        "--ignore-class-names", action="store_true", help="allow a data set whose class names differ from the model's"
    )
    options, rest = parser.parse_known_args(list(argv))
    description = DESCRIPTION + "\n" + parser.format_help()
    if not options.checkpoint:
        load_config(RunConfig, rest, description)  # --help, or an error of its own, comes first
        raise UserError("no checkpoint to evaluate; give it with --checkpoint FILE")
    subject = read_subject(options.checkpoint) if not {"-h", "--help"} & set(rest) else Subject("", False, {})
    config = load_config(RunConfig, rest, description, base=subject.config)
    request = Request(
        subject,
        config,
        _choose_weights(subject, options.weights),
        Path(options.output) if options.output else None,
        options.ignore_class_names,
    )
    _check_request(request, arch_given=any(word.startswith(("--model.arch", "--config-file", "-C")) for word in rest))
    return request


def read_subject(path: str) -> Subject:
    """What a checkpoint says about itself. Raises `UserError` where the file is missing or is no checkpoint."""
    if not Path(path).is_file():
        raise UserError(f"the checkpoint {path} does not exist; a run writes last.pt, best.pt and final.pt")
    try:
        state = load_checkpoint(path)
    except UserError:
        read_state_dict(path)  # says what is wrong with a file that is no checkpoint at all
        return Subject(path, False, {})
    names = state.get("class_names")
    return Subject(
        path=path,
        ours=True,
        config=state["config"],
        has_ema=state.get("ema") is not None,
        arch=state["arch"],
        num_classes=state["num_classes"],
        class_names=tuple(names) if names is not None else None,
        epoch=state.get("epoch"),
    )


def run_evaluation(request: Request, process: Process) -> dict[str, Any]:
    """Evaluate and return the report, the same on every rank (docs: `results` holds a record per resolution).

    Everything that can be wrong is checked before the first batch. Raises `UserError`.
    """
    subject, config = request.subject, request.config
    beton = open_beton(config.data.val_dataset)
    model, num_classes = _load_model(request, beton)
    for resolution in config.validation.resolution:
        check_resolution(model, resolution, config.model.arch)
    memory_format = torch.channels_last if config.model.channels_last else torch.contiguous_format
    model = model.to(process.device, memory_format=memory_format)  # type: ignore[call-overload]
    mean, std = _normalisation(request)
    amp_dtype = AMP_DTYPES[config.training.amp]
    normalise = Normaliser(mean, std, process.device, amp_dtype or torch.float32, memory_format)
    torch.backends.cudnn.benchmark = True  # every batch but the last has the same shape
    environment = describe_environment(process.device)

    results = []
    sides = list(dict.fromkeys(config.validation.resolution))
    line = ProgressLine() if process.is_main else None
    with contextlib.closing(val_loader(config, beton, max(sides), process)) as loader:
        for side in sides:
            loader.set_resolution(side)
            start = time.perf_counter()
            with _out_of_memory(config, side), contextlib.closing(_shown(loader, line, f"{side} px")) as batches:
                metrics = evaluate(
                    model,
                    batches,
                    device=process.device,
                    normalise=normalise,
                    amp_dtype=amp_dtype,
                    tta=config.validation.lr_tta,
                    num_samples=len(beton),
                )
            seconds = time.perf_counter() - start
            speed = {"seconds": seconds, "images_per_s": len(beton) / seconds}
            results.append({"resolution": side, **metrics, **speed})
    return {
        "format": 1,
        "checkpoint": subject.path,
        "weights": request.weights,
        "epoch": subject.epoch,
        "arch": config.model.arch,
        "use_blurpool": config.model.use_blurpool,
        "num_classes": num_classes,
        "data_set": str(beton.path),
        "samples": len(beton),
        "normalisation": {"mean": mean, "std": std},
        "crop_ratio": config.validation.crop_ratio,
        "interpolation": config.validation.interpolation,
        "amp": config.training.amp,
        "world_size": process.world_size,
        "batch_per_device": config.validation.batch_size,
        "results": results,
        **environment,
    }


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of `run_evaluation` as a table with a row per resolution and view."""
    console = console or Console(highlight=False)
    title = f"{report['checkpoint']} ({report['arch']}) on {report['data_set']}"
    console.print(title, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("side", "view", "samples", "top-1 %", "top-5 %", "NLL", "ECE", "images/s"):
        table.add_column(name, justify="left" if name == "view" else "right", no_wrap=True)
    for result in report["results"]:
        views = [("single", result)]
        if "flip_averaged" in result:
            views.append(("flip-averaged", result["flip_averaged"]))
        for number, (view, metrics) in enumerate(views):
            table.add_row(
                str(result["resolution"]) if number == 0 else "",
                view,
                f"{metrics['count']:,}",
                f"{metrics['top_1']:.2%}".removesuffix("%"),
                f"{metrics['top_5']:.2%}".removesuffix("%"),
                f"{metrics['nll']:.4f}",
                f"{metrics['ece']:.4f}",
                f"{result['images_per_s']:,.0f}" if number == 0 else "",
            )
    console.print(table)


def _choose_weights(subject: Subject, wish: str) -> str:
    if wish == "ema" and subject.ours and not subject.has_ema:
        raise UserError(f"{subject.path} holds no averaged weights (training.ema_decay was 0); use --weights model")
    if wish == "auto" and subject.ours:
        return "ema" if subject.has_ema else "model"
    return wish


def _check_request(request: Request, arch_given: bool) -> None:
    subject, config = request.subject, request.config
    if not subject.ours and not arch_given:
        raise UserError(
            f"{subject.path} is not a checkpoint of this trainer and does not say what network it is of; "
            "name it with --model.arch"
        )
    if subject.ours and config.model.arch != subject.arch:
        raise UserError(f"{subject.path} is a checkpoint of {subject.arch}, not {config.model.arch}; drop --model.arch")
    if subject.ours and config.model.num_classes not in (0, subject.num_classes):
        raise UserError(
            f"{subject.path} has {subject.num_classes} classes, not {config.model.num_classes}; "
            "drop --model.num_classes"
        )
    if bool(config.data.mean) != bool(config.data.std):
        raise UserError("data.mean and data.std belong together; set both or neither")
    if not config.data.val_dataset:
        raise UserError("data.val_dataset is not set; give the .beton file with --data.val_dataset=FILE")
    if request.output is not None:
        if request.output.is_dir():
            raise UserError(
                f"--output {request.output} is a folder; name a file, {request.output / 'metrics.json'} say"
            )
        with disk_errors(request.output):
            request.output.parent.mkdir(parents=True, exist_ok=True)


def _load_model(request: Request, beton: Beton) -> tuple[nn.Module, int]:
    """The network with the checkpoint's weights on the CPU and its class count, checked against the data set's."""
    subject, config = request.subject, request.config
    names = beton.class_names
    if subject.ours:
        num_classes = subject.num_classes
        if not request.ignore_class_names:
            _check_classes(subject, beton)
        check_labels(beton, num_classes)
        return _load(request, num_classes)
    # Only the file's tensors know its class count, so a head that does not fit tells it.
    expected = config.model.num_classes or (len(names) if names else int(beton.labels.max()) + 1)
    model, file_classes = _load(request, expected)
    if file_classes != expected:
        if config.model.num_classes:
            raise UserError(f"{subject.path} has {file_classes} classes, but model.num_classes is {expected}")
        if names and not request.ignore_class_names:
            raise UserError(
                f"{subject.path} has {file_classes} classes, {beton.path} has {expected}; if the data set's labels are "
                f"nevertheless the model's, pass --model.num_classes={file_classes}"
            )
        model, _ = _load(request, file_classes)
    check_labels(beton, file_classes)
    return model, file_classes


def _load(request: Request, num_classes: int) -> tuple[nn.Module, int]:
    """The loaded network and the checkpoint's number of classes; where that is another, the head is random."""
    config = request.config.model
    model = create_model(config, num_classes)
    report = load_weights(
        model, request.subject.path, config.arch, ema=request.weights != "model", blurred=config.use_blurpool
    )
    return model, report.file_classes if report.replaced else num_classes


def _check_classes(subject: Subject, beton: Beton) -> None:
    known, found = subject.class_names, beton.class_names
    way_out = "if its labels are nevertheless the model's, pass --ignore-class-names"
    if found is None:
        return
    if len(found) != subject.num_classes:
        raise UserError(
            f"{subject.path} has {subject.num_classes} classes, {beton.path} has {len(found)}; choose the data set "
            f"that belongs to the model, or {way_out}"
        )
    if known is not None and known != found:
        label = next(i for i, (a, b) in enumerate(zip(known, found, strict=True)) if a != b)
        raise UserError(
            f"{beton.path} calls label {label} {found[label]!r}, {subject.path} calls it {known[label]!r}; write the "
            f"data set with the model's classes, or {way_out}"
        )


def _normalisation(request: Request) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = request.config
    if config.data.mean:
        return config.data.mean, config.data.std
    stated = pretrained_normalisation(dataclasses.replace(config.model, weights=request.subject.path))
    return stated or (IMAGENET_MEAN, IMAGENET_STD)


def _shown(loader: Loader, line: ProgressLine | None, head: str) -> Generator[Batch, None, None]:
    """The loader's batches, with a progress line."""
    steps, start, images = len(loader), time.perf_counter(), 0
    try:
        with contextlib.closing(loader.epoch()) as batches:
            for step, batch in enumerate(batches, start=1):
                yield batch
                images += len(batch.labels)
                if line is not None:
                    line.show(head, step, steps, f"{images / (time.perf_counter() - start):,.0f} images/s per process")
    finally:
        if line is not None:
            line.close()


@contextlib.contextmanager
def _out_of_memory(config: RunConfig, side: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for batches of {config.validation.batch_size} images of {side} pixels; "
            "lower --validation.batch_size"
        ) from None
