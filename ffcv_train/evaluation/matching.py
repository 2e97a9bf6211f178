"""A data set's labels made those of a checkpoint's network, by the names of the classes."""

from collections.abc import Sequence

from ffcv_train.data.classes import Classes, Named, check_labels, match_classes, used_names
from ffcv_train.data.open import DataSet, relabelled
from ffcv_train.evaluation.subject import Subject
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.system.class_names import difference, whole_numbers
from ffcv_train.system.distributed import Process
from ffcv_train.system.progress import ProgressLine

_IMAGENET = 1000


def matched(
    data_set: DataSet, subject: Subject, num_classes: int, *, ignore: bool = False
) -> tuple[DataSet, list[str]]:
    """`data_set` with the labels of the network of `subject`, which has `num_classes` outputs, and notes for the user.

    Classes are matched by name (see `match_classes`), or with `ignore` taken for the network's as they are. Raises
    `UserError` where they are not the network's.
    """
    if ignore:
        check_labels(data_set, num_classes)
        return data_set, [*data_set.notes, *_ignored(data_set, subject)]
    classes = network_classes(data_set, subject, num_classes)
    match = match_classes(data_set, classes)
    notes = [match.note] if match.note else []
    if classes.names != subject.class_names:
        notes.append(f"{subject.path} has {num_classes} classes without names: they are taken for ImageNet's")
    return relabelled(data_set, match, classes.names), [*data_set.notes, *notes]


def network_classes(data: Named, subject: Subject, num_classes: int) -> Classes:
    """The classes of the network of `subject`, as `classes_of` has them."""
    return classes_of(data, subject.path, subject.class_names, num_classes)


def classes_of(data: Named, owner: str, names: tuple[str, ...] | None, num_classes: int) -> Classes:
    """The classes `names` of a network, `owner`'s; where it names none, ImageNet's if it has as many and `data` these.

    `data` has ImageNet's classes where all with images are called by WordNet IDs of ImageNet-1k, or by numbers.
    """
    if num_classes != _IMAGENET or data.class_names is None:
        return Classes(owner, names, num_classes)
    imagenet = imagenet_names().keys
    if names == imagenet:
        return Classes(owner, names, num_classes, numbered=True)
    if names is None or names == tuple(map(str, range(num_classes))):
        used = used_names(data)
        if are_imagenets(used) and (names is None or whole_numbers(used) is None):
            return Classes(owner, imagenet, num_classes, numbered=True)
    return Classes(owner, names, num_classes)


def are_imagenets(names: Sequence[str]) -> bool:
    """Whether data sets with ImageNet's classes call them so: all WordNet IDs of ImageNet-1k, or all numbers."""
    return bool(names) and (whole_numbers(names) is not None or set(names) <= set(imagenet_names().keys))


def say(notes: Sequence[str], process: Process) -> None:
    """Print notes, once for all ranks."""
    if process.is_main:
        line = ProgressLine()
        for note in notes:
            line.print(f"note: {note}")


def _ignored(data_set: DataSet, subject: Subject) -> list[str]:
    found, known = data_set.class_names, subject.class_names
    if found is None or known is None or found == known[: len(found)]:
        return []
    return [f"--ignore-class-names: {difference(str(data_set.path), found, subject.path, known)}"]
