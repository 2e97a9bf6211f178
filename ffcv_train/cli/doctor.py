"""What limits training on this machine; every option is described by --help and docs/doctor.md.

python -m ffcv_train doctor --data.train_dataset=train.beton --config-file rn50_configs/rn50_16_epochs.yaml
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.cli.presets import load_run_config
from ffcv_train.doctor.examination import Request, examine
from ffcv_train.doctor.report import print_report
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json

DESCRIPTION = """Measure whether the loader or the training step limits a run on this machine, and say what to do.

python -m ffcv_train doctor --data.train_dataset=train.beton --config-file rn50_configs/rn50_16_epochs.yaml

Takes the configuration of the run that is planned, all of its options, and writes nothing but --json FILE. Start it
without torchrun: one process measures one device, --devices says how many the run will have on this machine.
"""


def parse_request(argv: Sequence[str]) -> Request:
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
    options, rest = parser.parse_known_args(list(argv))
    config, _ = load_run_config(rest, DESCRIPTION + "\n" + parser.format_help())
    request = Request(
        config,
        Path(options.json) if options.json else None,
        _number("--seconds", options.seconds),
        _count("--devices", options.devices),
    )
    if request.json is not None:
        check_output(request.json)
    return request


def _number(name: str, text: str) -> float:
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


def check_output(path: Path) -> None:
    """Raise `UserError` where `--json path` cannot be written."""
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file, {path / 'doctor.json'} say")
    if not path.parent.is_dir():
        raise UserError(f"--json {path} lies in a folder that does not exist; create {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write --json {path}: {path.parent} is not writable")


def main(argv: Sequence[str]) -> None:
    """Parse, examine, print and write."""
    request = parse_request(argv)
    with process_group(request.config.training.device) as process:
        report = examine(request, process)
        print_report(report)
        if request.json is not None:
            write_json(request.json, report)
            print(f"report: {request.json}")
