"""Evaluate a checkpoint on a .beton file; every option is described by --help and docs/options.md.

python eval.py --checkpoint runs/my_run/final.pt --data.val_dataset=val.beton --output metrics.json
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ffcv_train.cli.arguments import parse_request
from ffcv_train.evaluation.run import run_evaluation
from ffcv_train.system.distributed import process_group
from ffcv_train.system.files import write_json


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of `run_evaluation` as a table with a row per resolution and view."""
    console = console or Console(highlight=False)
    weights = "averaged" if report["weights"] == "ema" else "plain"
    title = f"{report['checkpoint']} ({report['arch']}, {weights} weights) on {report['data_set']}"
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


def main(argv: Sequence[str]) -> None:
    """Parse, evaluate, print and write."""
    request = parse_request(argv)
    with process_group(request.config.training.device) as process:
        report = run_evaluation(request, process)
        if process.is_main:
            print_report(report)
            if request.output is not None:
                write_json(request.output, report)
                print(f"metrics: {request.output}")
