"""What a comparison takes of one finished run: its command line."""

import argparse
from collections.abc import Sequence

from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.suite_arguments import add_suite_options, suite_options
from ffcv_train.comparison.measure import measure
from ffcv_train.evaluation.subject import Request
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json

DESCRIPTION = """Measure a finished run of a comparison: metrics, features, linear transfer.

python -m ffcv_train measure --checkpoint runs/ce_seed0/final.pt --output runs/ce_seed0/measures.json
"""


def parse_measure_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--output", type=expand_path, metavar="FILE", help="write the measures to this JSON file")
        group.add_argument(
            "--transfer-train", type=expand_path, metavar="BETON", help="data set that a linear probe is fitted to"
        )
        group.add_argument(
            "--transfer-val", type=expand_path, metavar="BETON", help="data set that the linear probe is tested on"
        )
        add_suite_options(group)

    request = parse_request(argv, description=DESCRIPTION, add_options=add_options)
    if request.output is None:
        raise UserError("nowhere to write the measures to; give --output FILE")
    if bool(request.options.transfer_train) != bool(request.options.transfer_val):
        raise UserError("--transfer-train and --transfer-val belong together; give both or neither")
    return request


def main(argv: Sequence[str]) -> None:
    """Parse, measure, write."""
    request = parse_measure_request(argv)
    assert request.output is not None
    suites = suite_options(request.options, request.subject.config)
    samples = request.output.with_name("samples.npz")
    with process_group(request.config.training.device) as process:
        write_json(request.output, measure(request, process, suites, samples))
    print(f"measures: {request.output}")
