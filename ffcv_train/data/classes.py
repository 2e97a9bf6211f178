"""Classes: do those of two things agree, and what to tell the user where they do not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ffcv_train.system.class_names import alike, shown_apart, whole_numbers
from ffcv_train.system.errors import UserError


class Labelled(Protocol):
    """What has labels, int64 [N], and can name a sample."""

    @property
    def labels(self) -> np.ndarray: ...

    def describe(self, index: int) -> str: ...


class Named(Labelled, Protocol):
    """A data set whose classes may have names, in label order."""

    @property
    def path(self) -> Path: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def how_to_list(self) -> str: ...


@dataclass(frozen=True)
class Classes:
    """The classes that a data set is to have: those of a network, or of the data set that it is trained on."""

    owner: str
    """Whose they are, in words"""
    names: tuple[str, ...] | None
    """In label order; None where nothing names them"""
    count: int
    numbered: bool = False
    """Whether data sets call them by their labels too, as ImageNetV2 calls ImageNet's"""
    ignorable: bool = True
    """Whether the user has --ignore-class-names"""


@dataclass(frozen=True)
class Match:
    """How a data set's labels are those of `Classes`."""

    labels: np.ndarray | None = None
    """int64 [C], the label there of each of the data set's, −1 for classes without images; None: they are the same"""
    note: str = ""
    """What the user should know about it, if anything"""


def match_classes(data: Named, classes: Classes) -> Match:
    """Match the classes of `data` that have images to `classes`, by name wherever both have names.

    Classes may be fewer than there, and in another order. Raises `UserError`, saying how to go on, where they are not
    the same, or where nothing says whether they are.
    """
    found, known = data.class_names, classes.names
    if found is None:
        return _match_numbers(data, classes)
    _check_named(data, found)
    if known is None:
        return _match_by_position(data, found, classes)
    if found == known[: len(found)]:
        return Match()
    present, used = np.unique(data.labels).tolist(), used_names(data)
    label_of = {name: label for label, name in enumerate(known)}
    numbers = whole_numbers(used)
    if all(name in label_of for name in used):
        _check_distinct(data, used, known, classes.owner)
        targets = [label_of[name] for name in used]
        order = "in another order" if len(used) == classes.count else f"{len(used)} of {classes.count}"
        note = f"{data.path} has the classes of {classes.owner}, {order}: they are matched by name"
    elif classes.numbered and numbers is not None and max(numbers) < classes.count:
        targets = numbers
        note = f"the classes of {data.path} are called by numbers, which are taken for the labels of {classes.owner}"
    else:
        raise UserError(_strangers(data, found, known, classes))
    if targets == present:
        return Match(note=note)
    labels = np.full(len(found), -1, np.int64)
    labels[present] = targets
    return Match(labels, note)


def used_names(data: Named) -> tuple[str, ...]:
    """Names of the classes that have images, in label order; empty where nothing names them."""
    names = data.class_names or ()
    return tuple(names[label] for label in np.unique(data.labels).tolist() if label < len(names))


def check_labels(samples: Labelled, num_classes: int) -> None:
    """Raise `UserError` where a label is not in 0 … num_classes − 1."""
    wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= num_classes))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{samples.describe(first)} has the label {samples.labels[first]}, but the model has {num_classes} classes "
            f"(labels 0 … {num_classes - 1}); set --model.num_classes or write the data set anew"
        )


def _check_named(data: Named, found: Sequence[str]) -> None:
    beyond = np.flatnonzero(data.labels >= len(found))
    if len(beyond):
        first = int(beyond[0])
        raise UserError(
            f"{data.describe(first)} has the label {data.labels[first]}, but {len(found)} classes are named "
            f"(labels 0 … {len(found) - 1}); correct the list of classes, or write the data set anew"
        )


def _check_distinct(data: Named, used: Sequence[str], known: Sequence[str], owner: str) -> None:
    for where, names in ((str(data.path), Counter(used)), (owner, Counter(known))):
        double = next((name for name in used if names[name] > 1), None)
        if double is not None:
            raise UserError(
                f"{where} calls two classes {double!r}, which cannot be told apart; give each class a name of its own"
            )


def _match_numbers(data: Named, classes: Classes) -> Match:
    """Where the data set does not name its classes."""
    check_labels(data, classes.count)
    label = _misplaced(classes.names or ())
    if label is not None:
        raise UserError(
            f"nothing names the classes of {data.path}, and {classes.owner} calls label {label} "
            f"{(classes.names or ())[label]!r}; list the names of all {classes.count} labels of {data.path.name} in a "
            f"file, a line each, and {data.how_to_list}{_or_ignore(classes)}"
        )
    return Match(note=f"nothing names the classes of {data.path}; its labels are taken for those of {classes.owner}")


def _misplaced(names: Sequence[str]) -> int | None:
    """The first label that is not the number that it is called by, where all names are numbers; else None."""
    return next((label for label, number in enumerate(whole_numbers(names) or ()) if label != number), None)


def _or_ignore(classes: Classes) -> str:
    return "; if the labels are right as they are, pass --ignore-class-names" if classes.ignorable else ""


def _match_by_position(data: Named, found: Sequence[str], classes: Classes) -> Match:
    """Where only the data set names its classes: the same number of them, in an order that leaves no doubt."""
    label = _misplaced(found)
    if label is not None:
        raise UserError(
            f"{data.path} calls label {label} {found[label]!r}, and {classes.owner} does not name its classes; if the "
            f"names are its labels, list the numbers from 0 to {classes.count - 1} in a file, a line each, and "
            f"{data.how_to_list}{_or_ignore(classes)}"
        )
    if len(found) != classes.count:
        raise UserError(
            f"{classes.owner} has {classes.count} classes without names, {data.path} has {len(found)}; list all "
            f"{classes.count} in the order of their labels in a file, a line each, those that it has by their names, "
            f"and {data.how_to_list}"
        )
    return Match(note=f"{classes.owner} does not name its classes; those of {data.path} are taken for them, in order")


def _strangers(data: Named, found: Sequence[str], known: Sequence[str], classes: Classes) -> str:
    """What is wrong where not all classes are among `known`, and what to do about it."""
    used, path, owner = used_names(data), data.path, classes.owner
    numbers = whole_numbers(used)
    if classes.numbered and numbers is not None:
        beyond = next(name for name, number in zip(used, numbers, strict=True) if number >= classes.count)
        return (
            f"{path} has the class {beyond!r}, and {owner} has the labels 0 … {classes.count - 1}; take it out, or "
            "call all classes by their names"
        )
    unknown = [name for name in used if name not in set(known)]
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    twin = next((name for name in known if alike(name, unknown[0])), None)
    if twin is not None:
        here, there = shown_apart(unknown[0], twin)
        return f"{path} has the class {here}{more}, {owner} has {there}; give classes that are the same the same name"
    wrong = f"{path} has the class {unknown[0]!r}{more}, which {owner} has not; its first is {known[0]!r}"
    if not classes.ignorable:
        return f"{wrong}; make both of the same classes"
    listing = f"in a file, a line each, {data.how_to_list}, and pass --ignore-class-names"
    if numbers is not None:
        return f"{wrong}; if the numbers are its labels, list those from 0 to {classes.count - 1} {listing}"
    if len(found) == classes.count:
        return f"{wrong}; if the classes are the same, in the same order, pass --ignore-class-names"
    return (
        f"{wrong}; take such classes out, or where they are the same under other names, list these names, all "
        f"{classes.count} in the order of the model's labels, {listing}"
    )
