"""The one exception that users see."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_OPTION = re.compile(r"--(\w+)\.(\w+)")
_FLAG = re.compile(r"--\w+(?:-\w+)+")


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""

    def __str__(self) -> str:
        return printable(super().__str__())


@contextmanager
def speaking_of_arguments(sections: bool = False) -> Iterator[None]:
    """A `UserError` raised within names arguments of functions where commands name options of the same name.

    `--data.num_workers` becomes `num_workers`; with `sections`, for functions that take a configuration,
    `data.num_workers`; a flag such as `--ignore-class-names` is the argument `ignore_class_names`.
    """
    try:
        yield
    except UserError as error:
        text = _OPTION.sub(r"\1.\2" if sections else r"\2", str(error))
        error.args = (_FLAG.sub(lambda flag: flag[0][2:].replace("-", "_"), text),)
        raise


def printable(text: str) -> str:
    """`text` with control characters, but for line ends, in Python's notation.

    What is said often quotes names out of files, which must not steer the terminal that shows them.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
