"""Measure linear transfer of a checkpoint's features to another data set; --help describes every option.

ffcv-train transfer --checkpoint runs/my_run/final.pt --train train.beton --val val.beton --output transfer
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.analysis.figures.style import make_folder, save_both
from ffcv_train.analysis.figures.transfer import draw_transfer, transfer_table
from ffcv_train.cli.arguments import parse_request
from ffcv_train.evaluation.subject import Request
from ffcv_train.evaluation.transfer import run_transfer
from ffcv_train.metrics.linear_probe import HELD_OUT
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, replace_text, write_json

DESCRIPTION = """Measure linear transfer: a linear probe on a checkpoint's frozen features, on another data set.

ffcv-train transfer --checkpoint runs/my_run/final.pt --train train.beton --val val.beton --output transfer

Multinomial logistic regression on the penultimate features of centre crops, with an L2 penalty from 45 values between
1e-6 and 1e5, chosen on a held-out part of --train; then all of --train is fitted, and --val gives the accuracy. Writes
transfer.json, .md, .png and .svg. The network runs in float32 unless --training.amp says otherwise, at the first of
validation.resolution.
"""


def parse_transfer_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments of ffcv-train transfer. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--train", type=expand_path, metavar="FILE", help=".beton file to fit the probe on")
        group.add_argument("--val", type=expand_path, metavar="FILE", help=".beton file to measure it on")
        group.add_argument(
            "--output", dest="folder", type=expand_path, metavar="DIR", help="folder for figure and tables"
        )
        group.add_argument(
            "--held-out", type=float, default=HELD_OUT, metavar="S", help=f"share of each class held out [{HELD_OUT}]"
        )
        group.add_argument("--split-seed", type=int, default=0, metavar="N", help="which samples are held out [0]")

    request = parse_request(
        argv,
        description=DESCRIPTION,
        add_options=add_options,
        defaults={"training.amp": "off"},
        needs_data_set=False,
    )
    options = request.options
    for name, kind in (("train", "the .beton file to fit on"), ("val", "the .beton file to measure on")):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; give {kind} with --{name} FILE")
    if not options.folder:
        raise UserError("nowhere to write to; give a folder with --output DIR")
    if not 0 < options.held_out < 1:
        raise UserError(f"--held-out {options.held_out:g} must lie between 0 and 1")
    if options.split_seed < 0:
        raise UserError(f"--split-seed {options.split_seed} must be at least 0")
    return request


def main(argv: Sequence[str]) -> None:
    """Parse, measure, write."""
    request = parse_transfer_request(argv)
    folder = Path(request.options.folder)
    make_folder(folder)
    with process_group(request.config.training.device) as process:
        report = run_transfer(request, process)
    write_json(folder / "transfer.json", report)
    replace_text(folder / "transfer.md", transfer_table(report))
    save_both(draw_transfer(report), folder, "transfer")
    print(
        f"{report['accuracy']:.2%} on {report['val_set']} with λ = {report['strength']:.3g}, chosen on held-out samples"
    )
    if report["at_edge"]:
        print("note: the chosen strength ends the grid; a better one may lie beyond it")
    print(f"figure and tables: {folder}")
