import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.photographs import ROOT

INNER = "from numba import njit\n\n\n@njit(cache=True)\ndef inner(x):\n    return x + {}\n"
OUTER = """
from numba import njit
import inner
from inner import inner as add
from ffcv_train.data.kernels.compile_cache import forget_outdated

@njit(cache=True)
def outer(x):
    return add(x)

if {forget}:
    forget_outdated([outer], [inner])
print(outer(1), sum(outer.stats.cache_hits.values()))
"""


def run(folder: Path, forget: bool) -> list[int]:
    (folder / "outer.py").write_text(OUTER.format(forget=forget))
    os.utime(folder / "outer.py", (1_000_000_000, 1_000_000_000))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-c", "import outer"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


def test_a_changed_inner_function_is_compiled_into_the_outer_one(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(INNER.format(10))
    assert run(tmp_path, forget=True) == [11, 0]
    assert run(tmp_path, forget=True) == [11, 1]
    time.sleep(0.02)
    (tmp_path / "inner.py").write_text(INNER.format(200))
    assert run(tmp_path, forget=True) == [201, 0]
