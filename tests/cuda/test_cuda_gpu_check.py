"""`gpu-check` on the stub: its rows run to their ends, waits are looked for, and memory really ends."""

from typing import Any

import pytest

from ffcv_train.doctor.gpu.check import RANKS, ROWS
from tests.cuda.stub_run import findings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return findings(tmp_path_factory, "gpu_check")


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.name != "layout"])
def test_a_row_holds(found: Any, name: str) -> None:
    (row,) = [row for row in found["rows"] if row["row"] == name]
    assert row["result"] == "holds", row.get("traceback", row["told"])
    assert row["figures"]


def test_what_the_profiler_does_not_see_is_not_judged(found: Any) -> None:
    (row,) = [row for row in found["rows"] if row["row"] == "layout"]
    assert (row["result"], row["told"][:27]) == ("not judged", "the profiler saw no kernel;")


def test_rows_of_several_processes_ask_for_them(found: Any) -> None:
    rows = [row for row in found["rows"] if row["row"] in RANKS]
    assert {row["told"] for row in rows} == {"one process: start it with torchrun"}


def test_the_stub_lacks_nothing_that_the_check_calls(found: Any) -> None:
    assert found["missing"] == []
