"""Class names from a file, and what is checked about labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ffcv_train.data.format.beton import is_beton, sidecar_path
from ffcv_train.data.sources.source import SourceOptions
from ffcv_train.system.class_names import filled, largest_unnamed_label, parse_list, tidy
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names in label order: a text file's lines, or those in a .beton's sidecar (`F.beton` or `F.beton.json`)."""
    path = Path(file)
    if path.suffix == ".beton" or is_beton(path):
        path = sidecar_path(path)
    text = _read_text(path)
    if path.suffix != ".json":
        names: Sequence[str] = parse_list(text)
    else:
        try:
            names = [tidy(name) for name in parse_json(text)["class_names"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            names = []
    if not names or not all(names):
        raise UserError(f"{path} does not list class names: one per line, in label order, or a .beton's sidecar")
    return tuple(names)


def names_of_labels(
    labels: Sequence[int] | np.ndarray, describe: Callable[[int], str], named: Mapping[int, str] | None = None
) -> tuple[str, ...]:
    """Names of all labels up to the largest: those that `named` has, numbers for the others.

    `describe` says which sample one is. Raises `UserError` for a label far beyond the number of samples before memory
    is taken for the names of all that lie between.
    """
    numbers = np.asarray(labels, np.int64)
    largest = max([*(named or ()), int(numbers.max()) if len(numbers) else -1])
    limit = largest_unnamed_label(len(numbers) + len(named or ()))
    if largest > limit:
        where = describe(int(numbers.argmax())) if len(numbers) and largest == numbers.max() else "a map"
        raise UserError(
            f"{where} has the label {largest}, far beyond the number of images; labels number the classes from 0 on: "
            "correct it, or name all classes with a class list"
        )
    return filled(named or {}, largest + 1)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file") from None


def _listed_classes(options: SourceOptions, root: Path) -> tuple[str, ...] | None:
    if options.classes:
        return read_class_names(options.classes)
    beside = root / "classes.txt"
    return read_class_names(beside) if beside.is_file() else None


def _check_labels(labels: Sequence[int], class_names: Sequence[str], origin: str, option: str) -> None:
    if labels and max(labels) >= len(class_names):
        raise UserError(
            f"{origin} has the label {max(labels)}, but {len(class_names)} classes are named (labels 0 … "
            f"{len(class_names) - 1}); correct classes.txt or the file of {option}"
        )
