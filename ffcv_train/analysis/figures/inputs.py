"""Files of logits as the commands of figures take them: --input L1.pt [L2.pt …] --labels TEXT … --output DIR."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ffcv_train.metrics.logits_file import LogitsFile
from ffcv_train.system.class_names import check_same_classes as check_same_names
from ffcv_train.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Input:
    """A file of logits and the name that figures and tables give it."""

    label: str
    file: LogitsFile


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


def check_inputs_agree(inputs: Sequence[Input]) -> tuple[str, ...] | None:
    """The class names that the inputs share, None where no file has any. Raises `UserError` where they differ."""
    check_same_class_count(inputs)
    named = [one for one in inputs if one.file.class_names is not None]
    for other in named[1:]:
        paths, names = zip(
            *((str(one.file.path), one.file.class_names or ()) for one in (named[0], other)), strict=True
        )
        check_same_names(paths[0], names[0], paths[1], names[1], "give files of models with the same classes")
    return named[0].file.class_names if named else None
