"""What this process holds of the machine's memory."""

import ctypes

import numpy as np
import psutil
import pytest

from ffcv_train.system import resources
from ffcv_train.system.resources import give_back_memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator")
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [np.ones(50_000, np.uint8) for _ in range(2000)]  # too small for a mapping of their own
    process = psutil.Process()
    held = process.memory_info().rss
    last = blocks[-1]
    blocks.clear()  # all below the last one are holes
    give_back_memory()
    assert held - process.memory_info().rss > 60e6 and last.sum() == 50_000


def test_another_c_library_has_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ctypes, "CDLL", lambda name: object())
    give_back_memory()
