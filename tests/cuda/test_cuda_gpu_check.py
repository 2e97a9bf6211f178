"""`gpu-check` on the stub: its rows run to their ends, waits are looked for, and memory really ends."""

from typing import Any

import pytest

from ffcv_train.doctor.gpu.check import RANKS, ROWS, names
from tests.cuda.stub_run import findings

NAMES = names()
STEP = NAMES[NAMES.index("memory") :]
PARTS = {"gpu_check_numbers": NAMES[: NAMES.index("memory")], "gpu_check_step": STEP}


def found(factory: pytest.TempPathFactory, probe: str) -> Any:
    return findings(factory, probe, {"rows": PARTS[probe]})


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.name != "layout"])
def test_a_row_holds(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    (probe,) = [probe for probe, rows in PARTS.items() if name in rows]
    (row,) = [row for row in found(tmp_path_factory, probe)["rows"] if row["row"] == name]
    assert row["result"] == "holds", row.get("traceback", row["told"])
    assert row["figures"]


def test_what_the_profiler_does_not_see_is_not_judged(tmp_path_factory: pytest.TempPathFactory) -> None:
    (row,) = [row for row in found(tmp_path_factory, "gpu_check_step")["rows"] if row["row"] == "layout"]
    assert (row["result"], row["told"][:27]) == ("not judged", "the profiler saw no kernel;")


def test_rows_of_several_processes_ask_for_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [row for row in found(tmp_path_factory, "gpu_check_step")["rows"] if row["row"] in RANKS]
    assert [row["told"] for row in rows] == ["one process: start it with torchrun"] * len(RANKS)


@pytest.mark.parametrize("probe", PARTS)
def test_the_stub_lacks_nothing_that_the_check_calls(tmp_path_factory: pytest.TempPathFactory, probe: str) -> None:
    assert found(tmp_path_factory, probe)["missing"] == []
