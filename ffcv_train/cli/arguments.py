"""The command line of whatever runs a checkpoint over a data set, laid over the checkpoint's own configuration."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ffcv_train.cli.presets import lay_preset
from ffcv_train.cli.suite_arguments import add_suite_options, tau_of
from ffcv_train.config.read import load_config, told_options
from ffcv_train.config.schema import RunConfig
from ffcv_train.evaluation.subject import Request, Subject, check_arch_is_given, choose_weights, read_subject
from ffcv_train.models.preset import EVALUATION_KEYS, preset_of
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, expand_path

DESCRIPTION = """Evaluate a checkpoint: top-1, top-5, NLL and calibration error, each sample exactly once.

ffcv-train eval --checkpoint runs/my_run/final.pt --data.val_dataset=val.beton --validation.resolution=224,256
torchrun --nproc_per_node=8 -m ffcv_train eval --checkpoint …     the same numbers, sooner

A checkpoint of ffcv-train train carries its configuration, and every section below starts from that; so does what
ffcv-train export wrote. Other checkpoints (torchvision, timm, plain state dicts, safetensors) need --model.arch.
"""


def add_options(group: argparse._ArgumentGroup) -> None:
    """The own options of `eval`."""
    group.add_argument(
        "--output", type=expand_path, metavar="FILE", help="write the metrics to this JSON file, figures beside it"
    )
    group.add_argument(
        "--per-class",
        type=expand_path,
        metavar="FILE.csv",
        help="write a row per class (first resolution, single view), and beside it the confusion matrix",
    )
    add_class_names_option(group)
    group.add_argument(
        "--tau", metavar="T", help="divide each class's weights of the last layer by their norm to this power, no bias"
    )
    add_suite_options(group)
    group.add_argument(
        "--keep-temperature", action="store_true", help="calibration: write the temperature into the checkpoint"
    )


def add_class_names_option(group: argparse._ArgumentGroup) -> None:
    """`--ignore-class-names`, for scripts whose data set must have the model's classes."""
    group.add_argument(
        "--ignore-class-names", action="store_true", help="allow a data set whose class names differ from the model's"
    )


def parse_request(
    argv: Sequence[str],
    *,
    description: str = DESCRIPTION,
    add_options: Callable[[argparse._ArgumentGroup], None] = add_options,
    defaults: Mapping[str, Any] | None = None,
    needs_data_set: bool = True,
    read: Callable[[str], Subject] = read_subject,
) -> Request:
    """Resolve a script's arguments; the checkpoint's own configuration lies below YAML files and the command line.

    `add_options` declares what the script knows besides `--checkpoint`, `--weights` and the configuration;
    `defaults` ("section.key" to value) replaces what the checkpoint says. Without `needs_data_set`,
    data.val_dataset may be empty. `read` is `read_subject`, or what knows files that are open already. Raises
    `UserError` for what does not fit together, as far as that shows without the data set.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own = parser.add_argument_group("evaluation")
    own.add_argument("--checkpoint", type=expand_path, metavar="FILE", help="the checkpoint to evaluate")
    own.add_argument(
        "--weights",
        choices=("auto", "ema", "model"),
        default="auto",
        help="averaged or plain weights; auto: averaged where the checkpoint has them",
    )
    add_options(own)
    options, rest = parser.parse_known_args(list(argv))
    description = description + "\n" + parser.format_help()
    if not options.checkpoint:
        load_config(RunConfig, rest, description)  # --help, or an error of its own, comes first
        raise UserError("no checkpoint to evaluate; give it with --checkpoint FILE")
    subject = read(options.checkpoint) if not {"-h", "--help"} & set(rest) else Subject("", False, {})
    base = {section: dict(values) for section, values in subject.config.items()}
    for key, value in (defaults or {}).items():
        section, name = key.split(".")
        base.setdefault(section, {})[name] = value
    config, taken = load_config(RunConfig, rest, description, base=base), ""
    arch_given = "model.arch" in told_options(RunConfig, rest)
    if not subject.ours and (arch_given or subject.named):
        subject = subject.opened(config.model.arch)
        preset = preset_of(subject.file, config.model.arch)
        if preset is not None:
            config, taken = lay_preset(preset, rest, EVALUATION_KEYS, base)
    output = getattr(options, "output", None)
    request = Request(
        subject,
        config,
        choose_weights(subject, options.weights),
        Path(output) if output else None,
        getattr(options, "ignore_class_names", False),
        SimpleNamespace(**vars(options)),
        tau_of(getattr(options, "tau", None)),
        taken,
    )
    _check_request(request, arch_given, needs_data_set)
    return request


def _check_request(request: Request, arch_given: bool, needs_data_set: bool) -> None:
    subject, config = request.subject, request.config
    check_arch_is_given(subject, arch_given)
    if subject.ours and config.model.arch != subject.arch:
        raise UserError(f"{subject.path} is a checkpoint of {subject.arch}, not {config.model.arch}; drop --model.arch")
    if subject.ours and config.model.num_classes not in (0, subject.num_classes):
        raise UserError(
            f"{subject.path} has {subject.num_classes} classes, not {config.model.num_classes}; "
            "drop --model.num_classes"
        )
    if bool(config.data.mean) != bool(config.data.std):
        raise UserError("data.mean and data.std belong together; set both or neither")
    if needs_data_set and not config.data.val_dataset:
        raise UserError("data.val_dataset is not set; give the .beton file with --data.val_dataset=FILE")
    if request.output is not None:
        _check_output(request)


def _check_output(request: Request) -> None:
    output = request.output
    assert output is not None
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, {output / 'metrics.json'} say")
    for taken in (request.subject.path, request.config.data.val_dataset):
        if taken and output.exists() and Path(taken).exists() and output.samefile(taken):
            raise UserError(f"--output {output} would replace {taken}, which is read; name another file")
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
