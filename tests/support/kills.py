"""A process that dies at a chosen point of what it does to the disk, without a process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """What stands for SIGKILL."""


@contextlib.contextmanager
def killed_at(point: int) -> Iterator[list[str]]:
    """Within, the `point`th renaming, removal or bringing to the disk raises `Killed`, before or after it was done.

    The dead do nothing: cleaning up finds that none of these calls has an effect any more. Gives a list that holds
    where it died, empty when there were fewer points.
    """
    died: list[str] = []
    count = 0

    def step(name: str) -> None:
        nonlocal count
        count += 1
        if count == point:
            died.append(name)
            raise Killed

    def dying(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if died:
                return None
            step(f"before {name}")
            result = real(*arguments, **options)
            step(f"after {name}")
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "remove"), (os, "truncate"),
            (Path, "replace"), (Path, "rename"), (Path, "unlink"),
        ):  # fmt: skip
            real = getattr(owner, name)
            # Nobody pulls the plug here, and waiting for the disk takes most of the time.
            patch.setattr(owner, name, dying((lambda descriptor: None) if name == "fsync" else real, name))
        yield died
