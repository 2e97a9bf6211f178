"""Files of logits as the scripts in viz/ take them: --input L1.pt [L2.pt …] --labels TEXT … --output DIR."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ffcv_train.analysis.logits_file import LogitsFile, read_logits
from ffcv_train.analysis.style import MAX_INPUTS, make_folder
from ffcv_train.errors import UserError
from ffcv_train.progress import ProgressLine


@dataclass(frozen=True, eq=False)
class Input:
    """A file of logits and the name that figures and tables give it."""

    label: str
    file: LogitsFile


def input_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --input, --labels and --output."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="what viz/logits.py --output wrote")
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="a name per file [the file's name]")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for figures and tables, made if needed")
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


def default_labels(paths: Sequence[str]) -> list[str]:
    """The files' names without their endings, with their folders where two are alike."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{Path(path).resolve().parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]


def check_same_class_count(inputs: Sequence[Input]) -> None:
    """Raise `UserError` where inputs have different numbers of classes."""
    first = inputs[0]
    for other in inputs[1:]:
        if other.file.num_classes != first.file.num_classes:
            raise UserError(
                f"{first.file.path} has {first.file.num_classes} classes, {other.file.path} has "
                f"{other.file.num_classes}; their numbers cannot be compared, give them to separate calls"
            )


def check_same_classes(inputs: Sequence[Input]) -> tuple[str, ...] | None:
    """The class names that the inputs share, None where no file has any. Raises `UserError` where they differ."""
    check_same_class_count(inputs)
    named = [one for one in inputs if one.file.class_names is not None]
    for other in named[1:]:
        if other.file.class_names != named[0].file.class_names:
            raise UserError(
                f"{named[0].file.path} and {other.file.path} name their classes differently; give files of models with "
                "the same classes"
            )
    return named[0].file.class_names if named else None


def progress_of(line: ProgressLine, head: str) -> Callable[[int, int], None]:
    """A callback (done, of) that shows samples on `line`."""
    return lambda done, of: line.show(head, done, of, "samples")


def _repeated(labels: Sequence[str]) -> str:
    return next(label for label in labels if list(labels).count(label) > 1)
