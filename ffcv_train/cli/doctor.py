"""What limits training on this machine; every option is described by --help and docs/doctor.md.

python -m ffcv_train doctor --data.train_dataset=train.beton --config-file rn50_configs/rn50_16_epochs.yaml
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ffcv_train.analysis.figures.rate_curve import draw_rate_curve
from ffcv_train.analysis.figures.style import FORMATS, make_folder, save_figure
from ffcv_train.cli.presets import load_run_config
from ffcv_train.doctor import trials
from ffcv_train.doctor.examination import DoctorOptions, examine
from ffcv_train.doctor.report import print_report
from ffcv_train.system.distributed import Process, process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json
from ffcv_train.system.progress import ProgressLine

DESCRIPTION = """Measure whether the loader or the training step limits a run on this machine, and say what to do.

python -m ffcv_train doctor --data.train_dataset=train.beton --config-file rn50_configs/rn50_16_epochs.yaml

Takes the configuration of the run that is planned, all of its options, and writes nothing but --json FILE. Start it
without torchrun: one process measures one device, --devices says how many the run will have on this machine.
"""


def parse_doctor_options(argv: Sequence[str]) -> DoctorOptions:
    """Resolve the doctor's arguments. Raises `UserError` for what does not fit, before anything is measured."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own = parser.add_argument_group("doctor")
    own.add_argument("--json", type=expand_path, metavar="FILE", help="also write the report to this file")
    own.add_argument(
        "--seconds", metavar="S", default="6", help="measuring time per resolution, of loader and step each [6]"
    )
    own.add_argument(
        "--devices", metavar="N", default="0", help="processes of the run on this machine; 0: one per GPU [0]"
    )
    own.add_argument("--overfit", action="store_true", help="instead: does the network learn one real batch by heart?")
    own.add_argument(
        "--find-lr", type=expand_path, metavar="FILE.png", help="instead: loss at rising rates, drawn, and a suggestion"
    )
    own.add_argument("--fit-batch", action="store_true", help="instead: the largest batch that a GPU has memory for")
    options, rest = parser.parse_known_args(list(argv))
    config = load_run_config(rest, DESCRIPTION + "\n" + parser.format_help()).config
    request = DoctorOptions(
        config,
        Path(options.json) if options.json else None,
        positive_number("--seconds", options.seconds),
        _count("--devices", options.devices),
        options.overfit,
        Path(options.find_lr) if options.find_lr else None,
        options.fit_batch,
    )
    if request.find_lr is not None:
        if request.find_lr.suffix.lower().removeprefix(".") not in FORMATS:
            raise UserError(f"--find-lr {request.find_lr} must end in .{', .'.join(FORMATS)}")
        make_folder(request.find_lr.parent)
    if request.json is not None:
        check_json(request.json)
    return request


def positive_number(name: str, text: str) -> float:
    """The option `name`'s value, a finite number above 0; raises `UserError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be a number above 0, not {text!r}")
    return value


def _count(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name} must be a whole number, at least 0, not {text!r}")
    return int(text)


def check_json(path: Path) -> None:
    """Raise `UserError` where `--json path` cannot be written."""
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file, {path / 'doctor.json'} say")
    if not path.parent.is_dir():
        raise UserError(f"--json {path} lies in a folder that does not exist; create {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write --json {path}: {path.parent} is not writable")


def try_out(request: DoctorOptions, process: Process) -> dict[str, Any]:
    """Run the trials that are asked for, say what came out, and return it as JSON can say it. Raises `UserError`."""
    report: dict[str, Any] = {}
    line = ProgressLine(plain_interval=10.0, console=Console(stderr=True, highlight=False, soft_wrap=True))

    def show(name: str) -> Callable[[int, int], None]:
        return lambda done, of: line.show(name, done, of, "steps")

    try:
        if request.overfit:
            one = trials.overfit(request.config, process, show("overfit"))
            report["overfit"] = dataclasses.asdict(one)
            print(
                f"overfit: cross-entropy of one batch of {one.images} images, lr {one.lr:.3g}: {one.losses[0]:.4f} → "
                f"{one.losses[-1]:.4f} in {len(one.losses)} steps: "
                + (
                    "learned by heart"
                    if one.learned
                    else "NOT learned; look at labels, normalisation, lr.lr and finetune"
                )
            )
        if request.find_lr is not None:
            curve = trials.find_lr(request.config, process, show("find-lr"))
            report["find_lr"] = dataclasses.asdict(curve)
            save_figure(draw_rate_curve(curve.rates, curve.losses, curve.steepest), request.find_lr)
            print(
                f"find-lr: the loss falls fastest at {curve.steepest:.2g} and is least at {curve.least:.2g}; try "
                f"--lr.lr={curve.option:.2g}; figure: {request.find_lr}"
            )
        if request.fit_batch:
            largest = trials.fit_batch(request.config, process, lambda what: line.print(f"fit-batch: {what}"))
            report["fit_batch"] = largest
            print(f"fit-batch: --training.batch_size={largest} is the largest that fits")
    finally:
        line.close()
    return report


def main(argv: Sequence[str]) -> None:
    """Parse, examine, print and write."""
    request = parse_doctor_options(argv)
    with process_group(request.config.training.device) as process:
        if request.tries:
            report = try_out(request, process)
        else:
            report = examine(request, process)
            print_report(report)
        if request.json is not None:
            write_json(request.json, report)
            print(f"report: {request.json}")
