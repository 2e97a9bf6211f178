"""The stub's face in a probe: what it counted, how it works, how much memory it has."""

import ctypes
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")

_stub = ctypes.CDLL(None)
_stub.cuda_stub_counters.restype = ctypes.c_char_p
_stub.cuda_stub_set_memory.argtypes = [ctypes.c_size_t]

ORDERS = ("early", "late", "random", "overtaking")
MEMORY = 80 << 30


def counters() -> dict[str, int]:
    """How often each thing happened since the last `reset_counters`."""
    lines = _stub.cuda_stub_counters().decode().splitlines()
    return {name: int(number) for name, number in (line.split("\t") for line in lines)}


def reset_counters() -> None:
    """Count from 0."""
    _stub.cuda_stub_reset_counters()


def counted(action: Callable[[], Any]) -> dict[str, int]:
    """What `action` made the stub count."""
    reset_counters()
    action()
    return counters()


def set_order(order: str) -> None:
    """Have the device work "early", "late", at "random" moments or "overtaking" from now on (stub/device.hpp)."""
    _stub.cuda_stub_set_order(ORDERS.index(order))


def set_memory(size: int) -> None:
    """Give each device so many bytes from now on."""
    _stub.cuda_stub_set_memory(size)


def arguments() -> dict[str, Any]:
    """What the test passed."""
    return json.loads(sys.argv[1])


def folder() -> Path:
    """Where the probe may write."""
    return Path(sys.argv[3])


def report(found: Any) -> NoReturn:
    """Hand the findings to the tests, and end."""
    Path(sys.argv[2]).write_text(json.dumps(found))
    sys.stdout.flush()
    # PyTorch's threads of the device may want the interpreter while it ends, which aborts the process now and then.
    os._exit(0)
