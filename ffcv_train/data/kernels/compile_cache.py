"""Keeping numba's disk cache honest about functions that are compiled into others."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


def forget_outdated(functions: Iterable[Any], modules: Iterable[ModuleType]) -> None:
    """Drop what numba has cached of `functions` (compiled with `cache=True`) before one of `modules` last changed.

    numba compares only the file that a function stands in, so that after an update it would go on running what it once
    compiled in from other files.
    """
    changed = max(Path(str(module.__file__)).stat().st_mtime_ns for module in modules)
    for function in functions:
        for index in Path(function.stats.cache_path).glob(f"*.{function.py_func.__name__}-*.nbi"):
            if index.stat().st_mtime_ns <= changed:
                index.unlink(missing_ok=True)
