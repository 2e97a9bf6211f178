"""`gpu-check` on the stub: its rows run to their ends, waits are looked for, and memory really ends."""

from typing import Any

import pytest

from ffcv_train.doctor.gpu.check import RANKS, names
from tests.cuda.stub_run import findings

NAMES = names()
STEP = NAMES[NAMES.index("memory") :]
PARTS = {"gpu_check_numbers": NAMES[: NAMES.index("memory")], "gpu_check_step": STEP}


def found(factory: pytest.TempPathFactory, probe: str) -> Any:
    return findings(factory, probe, {"rows": PARTS[probe]})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "layout" and name not in RANKS])
def test_a_row_holds(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    (probe,) = [probe for probe, rows in PARTS.items() if name in rows]
    rows = [row for row in found(tmp_path_factory, probe)["rows"] if row["row"].partition(":")[0] == name]
    assert len(rows) == (2 if name == "speed" else 1)
    for row in rows:
        assert row["result"] == "holds", row.get("traceback", row["told"])
        assert row["figures"]


def test_what_the_profiler_does_not_see_is_not_judged(tmp_path_factory: pytest.TempPathFactory) -> None:
    (row,) = [row for row in found(tmp_path_factory, "gpu_check_step")["rows"] if row["row"] == "layout"]
    assert (row["result"], row["told"][:27]) == ("not judged", "the profiler saw no kernel;")


def test_rows_of_several_processes_ask_for_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [row for row in found(tmp_path_factory, "gpu_check_step")["rows"] if row["row"] in RANKS]
    assert [row["told"] for row in rows] == ["one process: start it with torchrun"] * len(RANKS)


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return findings(tmp_path_factory, "gpu_check_ranks", ranks=2)


@pytest.mark.parametrize("name", RANKS)
def test_a_row_of_several_processes_holds_over_nccl(of_ranks: Any, name: str) -> None:
    assert of_ranks[1]["findings"] is None  # rank 0 tells
    found = of_ranks[0]["findings"]
    assert found["devices"] == ["cuda:0", "cuda:1"]
    (row,) = [row for row in found["rows"] if row["row"] == name]
    assert row["result"] == "holds", row.get("traceback", row["told"])
    assert len(row["figures_of_ranks"]) == 2
    assert of_ranks[0]["reduced"] == of_ranks[1]["reduced"] > 0


def test_ranks_that_learn_apart_are_seen_over_nccl(of_ranks: Any) -> None:
    assert [rank["apart"] for rank in of_ranks] == [[2.0], [2.0]]


def test_the_stub_lacks_nothing_that_several_processes_call(of_ranks: Any) -> None:
    assert [rank["missing"] for rank in of_ranks] == [[], []]


@pytest.mark.parametrize("probe", PARTS)
def test_the_stub_lacks_nothing_that_the_check_calls(tmp_path_factory: pytest.TempPathFactory, probe: str) -> None:
    assert found(tmp_path_factory, probe)["missing"] == []
