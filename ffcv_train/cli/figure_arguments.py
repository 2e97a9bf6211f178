"""What the commands that draw logits files share: their arguments and their inputs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ffcv_train.analysis.figures.inputs import Input, default_labels
from ffcv_train.analysis.figures.style import MAX_INPUTS, make_folder
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path
from ffcv_train.system.progress import ProgressLine


def input_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --input, --labels and --output."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--input", nargs="+", required=True, type=expand_path, metavar="FILE", help="what ffcv-train logits wrote"
    )
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="a name per file [the file's name]")
    parser.add_argument(
        "--output", required=True, type=expand_path, metavar="DIR", help="folder for figures and tables, made if needed"
    )
    return parser


def read_inputs(options: argparse.Namespace, most: int = MAX_INPUTS) -> list[Input]:
    """Open the files, at most `most`, and make the output folder. Raises `UserError` for what does not fit."""
    paths, labels = options.input, options.labels or default_labels(options.input)
    if len(labels) != len(paths):
        raise UserError(f"{len(labels)} --labels do not name {len(paths)} --input files; give one per file")
    if len(set(labels)) < len(labels):
        raise UserError(f"two inputs are called {_repeated(labels)!r}; give each its own name with --labels")
    if len(paths) > most:
        raise UserError(f"a figure shows at most {most} inputs, not {len(paths)}; give fewer")
    inputs = [Input(label, read_logits(path)) for label, path in zip(labels, paths, strict=True)]
    make_folder(Path(options.output))
    return inputs


def progress_of(line: ProgressLine, head: str) -> Callable[[int, int], None]:
    """A callback (done, of) that shows samples on `line`."""
    return lambda done, of: line.show(head, done, of, "samples")


def _repeated(labels: Sequence[str]) -> str:
    return next(label for label in labels if list(labels).count(label) > 1)
