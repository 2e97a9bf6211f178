"""A process struck where it changes what is on the disk: an import of Python's own start-up, so it imports little."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NUMBER, _LOG = "FAULTS_POINT", "FAULTS_POINTS_LOG"
_CALLS = ("fsync", "rename", "replace", "link", "unlink")
_START_UP = """import sys
if sys.argv[:1] != ["-c"]:  # of the command alone, not of processes that it starts
    from faults.points import kill_at_a_point
    kill_at_a_point()
"""


def environment(folder: Path, number: int) -> dict[str, str]:
    """What makes a Python program kill itself at its number-th such place, from 1, and log those it reaches.

    A file goes to `folder` that Python imports when it starts.
    """
    (folder / "sitecustomize.py").write_text(_START_UP)
    root = Path(__file__).resolve().parent.parent
    return {"PYTHONPATH": f"{folder}:{root}", _NUMBER: str(number), _LOG: str(folder / "points.txt")}


def reached(folder: Path) -> list[str]:
    """The places that the program came to, in order."""
    log = folder / "points.txt"
    return log.read_text().splitlines() if log.exists() else []


def kill_at_a_point() -> None:
    """As `environment` has it, in the process of the program."""
    number, log = int(os.environ[_NUMBER]), os.environ[_LOG]
    count = 0

    def reach(where: str) -> None:
        nonlocal count
        count += 1
        with open(log, "a") as file:  # noqa: PTH123 (Path's own calls are among those that count)
            file.write(f"{where}\n")
        if count == number:
            os.kill(os.getpid(), 9)

    def struck(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def strike(*arguments: Any, **more: Any) -> Any:
            reach(f"before {name}")
            done = call(*arguments, **more)
            reach(f"after {name}")
            return done

        return strike

    for name in _CALLS:
        setattr(os, name, struck(name, getattr(os, name)))
