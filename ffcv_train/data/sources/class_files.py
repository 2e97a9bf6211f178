"""Class names from a file, and what is checked about labels."""

import json
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.data.format.beton import is_beton, sidecar_path
from ffcv_train.data.sources.source import Request
from ffcv_train.system.errors import UserError


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names in label order: a text file's lines, or those in a .beton's sidecar (`F.beton` or `F.beton.json`)."""
    path = Path(file)
    if path.suffix == ".beton" or is_beton(path):
        path = sidecar_path(path)
    text = _read_text(path)
    if path.suffix != ".json":
        names = [line.strip() for line in text.strip().splitlines()]
    else:
        try:
            names = json.loads(text)["class_names"]
        except (ValueError, KeyError, TypeError):
            names = []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} does not list class names: one per line, in label order, or a .beton's sidecar")
    return tuple(names)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file") from None


def _listed_classes(request: Request, root: Path) -> tuple[str, ...] | None:
    if request.classes:
        return read_class_names(request.classes)
    beside = root / "classes.txt"
    return read_class_names(beside) if beside.is_file() else None


def _check_labels(labels: Sequence[int], class_names: Sequence[str], origin: str) -> None:
    if labels and max(labels) >= len(class_names):
        raise UserError(
            f"{origin} has the label {max(labels)}, but {len(class_names)} classes are named (labels 0 … "
            f"{len(class_names) - 1}); correct classes.txt or --cfg.classes"
        )
