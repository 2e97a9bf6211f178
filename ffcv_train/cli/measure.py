"""What a comparison takes of one finished run: its command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.suite_arguments import add_suite_options, part_file, suite_names, suite_options
from ffcv_train.comparison.measure import measure, read_measured
from ffcv_train.evaluation.subject import Request
from ffcv_train.evaluation.suites.kept import remove_kept
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json

DESCRIPTION = """Measure a finished run of a comparison: metrics, features, linear transfer.

python -m ffcv_train measure --checkpoint runs/ce_seed0/final.pt --output runs/ce_seed0/measures.json
"""


TRANSFER = "transfer"
"""What --suite calls the linear probe on other data sets"""


def add_measure_options(group: argparse._ArgumentGroup) -> None:
    """What is measured besides, for a comparison too."""
    group.add_argument(
        "--transfer-train", type=expand_path, metavar="BETON", help="data set that a linear probe is fitted to"
    )
    group.add_argument(
        "--transfer-val", type=expand_path, metavar="BETON", help="data set that the linear probe is tested on"
    )
    add_suite_options(group, beside=[TRANSFER])


def transfer_files(options: Any) -> tuple[Path, Path] | None:
    """The linear probe's training and test set. Raises `UserError` for one without the other."""
    files = (options.transfer_train, options.transfer_val)
    if any(files) and not all(files):
        raise UserError("--transfer-train and --transfer-val belong together; give both or neither")
    if TRANSFER in suite_names(options) and not any(files):
        raise UserError(f"--suite {TRANSFER} probes features of other data; add --transfer-train and --transfer-val")
    return (Path(files[0]), Path(files[1])) if all(files) else None


def parse_measure_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--output", type=expand_path, metavar="FILE", help="write the measures to this JSON file")
        add_measure_options(group)

    request = parse_request(argv, description=DESCRIPTION, add_options=add_options)
    if request.output is None:
        raise UserError("nowhere to write the measures to; give --output FILE")
    transfer_files(request.options)
    return request


def main(argv: Sequence[str]) -> None:
    """Parse, measure, write."""
    request = parse_measure_request(argv)
    assert request.output is not None
    suites = suite_options(request.options, request.subject.trained_on, part_file(request.output), [TRANSFER])
    transfer, samples = transfer_files(request.options), request.output.with_name("samples.npz")
    with process_group(request.config.training.device) as process:
        found = measure(request, process, suites, transfer, samples, read_measured(request.output))
        write_json(request.output, found)
    remove_kept(suites)
    print(f"measures: {request.output}")
