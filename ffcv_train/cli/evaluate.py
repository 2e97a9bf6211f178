"""Evaluate a checkpoint on a .beton file; every option is described by --help and docs/options.md.

ffcv-train eval --checkpoint runs/my_run/final.pt --data.val_dataset=val.beton --output metrics.json
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffcv_train.analysis.figures.style import make_folder, save_figure
from ffcv_train.analysis.figures.suites import draw_suite, suite_tables
from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.class_results import print_worst, write_per_class
from ffcv_train.cli.suite_arguments import part_file, suite_options
from ffcv_train.evaluation.subject import Request
from ffcv_train.evaluation.suites import calibration
from ffcv_train.evaluation.suites.kept import remove_kept
from ffcv_train.evaluation.suites.run import evaluate_with_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.models.published import is_by_name
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError, printable
from ffcv_train.system.files import write_json

_LOG_WIDTH = 160
"""Of tables that are printed to no terminal, unless COLUMNS says otherwise"""


def print_metrics(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of `run_evaluation` as a table with a row per resolution and view."""
    console = console or Console(highlight=False)
    weights = "averaged" if report["weights"] == "ema" else "plain"
    title = f"{report['checkpoint']} ({report['arch']}, {weights} weights) on {report['data_set']}"
    console.print(printable(title), markup=False, soft_wrap=True)
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


def print_suites(suites: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the records of suites, a table or more each."""
    # In a log nothing is as narrow as a terminal, and folded numbers cannot be read there.
    console = console or Console(highlight=False, width=shutil.get_terminal_size((_LOG_WIDTH, 24)).columns)
    for name, record in suites.items():
        for table in suite_tables(name, [("", record)]):
            console.print()
            title = f"{name}: {table.title}" if table.title else name
            console.print(printable(title), markup=False, soft_wrap=True)
            shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for number, column in enumerate(table.header):
                shown.add_column(column, justify="right" if number else "left", overflow="fold")
            for row in table.rows:
                shown.add_row(*(escape(printable(cell)) for cell in row))
            console.print(shown)


def check_keeping(request: Request, options: SuiteOptions) -> None:
    """Raise `UserError` where the temperature cannot be kept with the checkpoint."""
    if not request.options.keep_temperature:
        return
    if "calibration" not in options.suites:
        raise UserError("--keep-temperature keeps what --suite calibration finds; add the suite")
    if not request.subject.file.of_a_run or is_by_name(request.subject.path):
        raise UserError(
            f"{request.subject.path} is not a checkpoint of a run here, and others are not rewritten; take the "
            "temperature from --output FILE, without --keep-temperature"
        )
    if request.tau is not None:
        raise UserError("--tau changes the logits, and the checkpoint stays as it is; drop --keep-temperature or --tau")


def main(argv: Sequence[str]) -> None:
    """Parse, evaluate, print and write."""
    request = parse_request(argv)
    options = suite_options(request.options, request.subject.trained_on, part_file(request.output))
    check_keeping(request, options)
    per_class = Path(request.options.per_class) if request.options.per_class else None
    if per_class is not None:
        if per_class.suffix.lower() != ".csv":
            raise UserError(f"--per-class {per_class} must end in .csv")
        make_folder(per_class.parent)
    with process_group(request.config.training.device) as process:
        report = evaluate_with_suites(request, process, options)
        if process.is_main:
            print_metrics(report)
            suites = report.get("suites", {})
            print_suites(suites)
            if request.output is not None:
                write_json(request.output, report)
                print(f"metrics: {request.output}")
                for name, record in suites.items():
                    path = request.output.with_name(f"{request.output.stem}_{name}.png")
                    save_figure(draw_suite(name, [("", record)]), path)
                    print(f"figure: {path}")
                remove_kept(options)
            if request.options.keep_temperature:
                calibration.keep(request.subject.file, request.weights, suites["calibration"])
                print(f"temperature {suites['calibration']['temperature']:.4f} kept in {request.subject.path}")
            if per_class is not None:
                print_worst(report, Console(highlight=False))
                write_per_class(report, per_class)
                print(f"classes: {per_class}")
