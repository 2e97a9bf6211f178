"""What evaluation says of each class, as files and on the terminal."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ffcv_train.analysis.figures.confusion import draw_confusion
from ffcv_train.analysis.figures.style import save_both
from ffcv_train.metrics.per_class import ClassResults
from ffcv_train.system.errors import printable
from ffcv_train.system.files import replace_text

_SHOWN = 10


def write_per_class(report: dict[str, Any], path: Path) -> None:
    """Write the classes to `path`, X.csv; beside it all errors, X_errors.csv, and the matrix, X_confusion.png and .svg.

    Raises `UserError`.
    """
    results = ClassResults.from_plain(report["per_class"])
    _write_csv(path, results.rows())
    errors = [
        {
            "label": true,
            "class": results.names[true],
            "predicted_label": other,
            "predicted_class": results.names[other],
            "count": count,
            "share": share,
        }
        for true, other, count, share in results.worst_pairs(len(results.confusions))
    ]
    _write_csv(path.with_name(f"{path.stem}_errors.csv"), errors)
    save_both(draw_confusion(results), path.parent, f"{path.stem}_confusion")


def print_worst(report: dict[str, Any], console: Console) -> None:
    """Print the most frequent errors."""
    results = ClassResults.from_plain(report["per_class"])
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title="Most frequent errors", title_justify="left"
    )
    for name in ("class", "taken for", "images", "share of the class"):
        table.add_column(name, justify="right" if name in ("images", "share of the class") else "left")
    names = [escape(printable(name)) for name in results.names]
    for true, other, count, share in results.worst_pairs(_SHOWN):
        table.add_row(names[true], names[other], f"{count:,}", f"{share:.1%}")
    console.print(table)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    if rows:
        table = csv.DictWriter(text, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(
            {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows
        )
    replace_text(path, text.getvalue())
