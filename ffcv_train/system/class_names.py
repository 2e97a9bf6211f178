"""Names of classes, in label order: read from lists, made up where there are none, and shown where they differ."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from ffcv_train.system.errors import UserError


def tidy(name: str) -> str:
    """`name` as it is compared: without white space around it, which lists of names cannot hold."""
    return name.strip()


def parse_list(text: str) -> tuple[str, ...]:
    r"""The names in a text of one a line; lines end at "\n" alone, for names hold what else Python takes for an end."""
    return tuple(tidy(line) for line in text.strip().split("\n"))


def filled(names: Mapping[int, str], count: int) -> tuple[str, ...]:
    """Names of the labels 0 … `count` − 1: those of `names`, else the label itself where no class is called that."""
    taken = set(names.values())
    return tuple(names[label] if label in names else _unused(str(label), taken) for label in range(count))


def largest_unnamed_label(num_samples: int) -> int:
    """The largest label that is believed where nothing names the classes: a number beyond it is none of a class."""
    return max(30_000, num_samples)


def whole_numbers(names: Iterable[str]) -> list[int] | None:
    """The numbers that `names` are, such as the folders 0 … 999; None where one of them is none."""
    names = list(names)
    if not names or not all(re.fullmatch(r"[0-9]{1,9}", name, re.ASCII) for name in names):
        return None
    return [int(name) for name in names]


def label_called(names: Sequence[str], text: str) -> int | None:
    """The label whose name a user typed: as it stands, or as Unicode composes it otherwise; None unless it is one's."""
    for form in (str, functools.partial(unicodedata.normalize, "NFC")):
        found = [label for label, name in enumerate(names) if form(name) == form(text)]
        if len(found) == 1:
            return found[0]
    return None


def alike(first: str, second: str) -> bool:
    """Whether two names look the same or nearly so: but for letters' case and their composition in Unicode."""
    return _folded(first) == _folded(second)


def shown_apart(first: str, second: str) -> tuple[str, str]:
    """Both names quoted, with their code points where they would look the same."""
    if unicodedata.normalize("NFKC", first) == unicodedata.normalize("NFKC", second) and first != second:
        return f"{first!r} ({ascii(first)[1:-1]})", f"{second!r} ({ascii(second)[1:-1]})"
    return repr(first), repr(second)


def difference(first: str, names: Sequence[str], second: str, others: Sequence[str]) -> str:
    """Where the classes of `first` and `second`, in words, are not the same in the same order; "" where they are."""
    for label, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            here, there = shown_apart(name, other)
            return f"{first} calls label {label} {here}, {second} calls it {there}"
    if len(names) != len(others):
        return f"{first} has {len(names)} classes, {second} has {len(others)}"
    return ""


def check_same_classes(first: str, names: Sequence[str], second: str, others: Sequence[str], advice: str) -> None:
    """Raise `UserError`, ending in `advice`, where two things do not have the same classes in the same order."""
    if found := difference(first, names, second, others):
        raise UserError(f"{found}; {advice}")


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"unnamed {name}"
    return name
