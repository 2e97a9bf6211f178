"""The check's findings as text."""

from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ffcv_train.system.progress import duration


def print_findings(findings: dict[str, Any], console: Console | None = None) -> None:
    """A line per row: its name, whether it holds, what it proves, and what was found."""
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what it proves", overflow="fold", ratio=2)
    table.add_column("found", overflow="fold", ratio=3)
    for row in findings["rows"]:
        table.add_row(row["row"], row["result"], row["proves"], row["told"])
    console.print(table, markup=False)
    console.print()
    devices = ", ".join(findings["devices"])
    versions = findings["versions"]
    libraries = f"PyTorch {versions['torch']}, CUDA {versions['cuda']}, cuDNN {versions['cudnn']}"
    for text in (f"{findings['device']} ({devices}), {libraries}", _judgement(findings)):
        console.print(text, markup=False)


def _judgement(findings: dict[str, Any]) -> str:
    rows = findings["rows"]
    counts = Counter(row["result"] for row in rows)
    parts = [f"{counts['holds']} of {len(rows)} rows hold"]
    parts += [f"{counts['fails']} fail"] if counts["fails"] else []
    parts += [f"{counts['left out']} left out for want of time (--minutes)"] if counts["left out"] else []
    parts += [f"{counts['not judged']} could not be judged here"] if counts["not judged"] else []
    return f"{', '.join(parts)}, in {duration(findings['seconds'])}"
