"""A process that dies at a chosen point of what it does to the disk, without a process."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ffcv_train.data.convert.encoding import EncodedChunk, Encoding, Task, encode_task
from ffcv_train.data.convert.worker import write_samples

_Test = TypeVar("_Test", bound=Callable[..., object])


class Killed(BaseException):
    """What stands for SIGKILL."""


@contextlib.contextmanager
def killed_at(point: int, *more: tuple[Any, str]) -> Iterator[list[str]]:
    """Within, the `point`th renaming, removal or bringing to the disk raises `Killed`, before or after it was done;
    so do calls of `more`, as (owner, name).

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
            (Path, "replace"), (Path, "rename"), (Path, "unlink"), *more,
        ):  # fmt: skip
            real = getattr(owner, name)
            # Nobody pulls the plug here, and waiting for the disk takes most of the time.
            patch.setattr(owner, name, dying((lambda descriptor: None) if name == "fsync" else real, name))
        yield died


def abandons_files(test: _Test) -> _Test:
    """For tests with `killed_at`: the dead close no files, and what they left open is forgotten with the test."""
    forgiven = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
    return pytest.mark.usefixtures("forgotten")(forgiven(test))


class InProcess:
    """What `WorkerPool` does, without its processes: starting those takes longer than the rest."""

    def __init__(self, count: int, encoding: Encoding, path: Path) -> None:
        self._encoding, self._path = encoding, path

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __len__(self) -> int:
        return 1

    def map(
        self, tasks: Iterable[Task], place: Callable[[EncodedChunk], list[int]] | None = None
    ) -> Iterator[EncodedChunk]:
        with self._path.open("r+b", buffering=0) as file:
            for task in tasks:
                chunk, contents = encode_task(self._encoding, task)
                if place:
                    write_samples(file.fileno(), place(chunk), contents)
                yield chunk
