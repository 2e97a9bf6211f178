"""A step on the device: what it makes the host wait for, how many kernels it launches, how much memory it takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ffcv_train.losses import CRITERIA
from tests.cuda.record import RECORD, tables
from tests.cuda.stub_run import findings
from tests.support.photographs import ROOT

RECORDED = json.loads(RECORD.read_text())
_TOLERANCE = 0.1
_RECORD = "where that is meant, record it with: python tests/cuda/record.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, jpg_beton: Path) -> Any:
    return findings(tmp_path_factory, "recipes", {"beton": str(jpg_beton), "root": str(ROOT), "sizes": False})


def test_no_step_of_a_recipe_waits_for_the_device(found: Any) -> None:
    own = {name: steps for name, steps in found["recipes"].items() if "as" not in steps}
    recipes = {f"{file.parent.name}/{file.stem}" for file in ROOT.glob("*_configs/*.yaml")}
    assert set(found["recipes"]) == recipes
    assert {name: steps["waited"] for name, steps in own.items() if steps["waited"]} == {}
    # Waits that PyTorch's detector does not see: searches of cuDNN, memory given back, copies from pageable memory.
    assert {name: steps["waits"] for name, steps in own.items() if steps["waits"]} == {}


def test_no_criterion_makes_the_host_wait(found: Any) -> None:
    assert {f"criterion {name}" for name in CRITERIA} <= set(found["options"])
    waiting = {name: steps for name, steps in found["options"].items() if steps["waited"] or steps["waits"]}
    assert {name for name in waiting if name.startswith(("criterion", "zipf"))} == set()


def test_no_option_makes_the_host_wait(found: Any) -> None:
    assert {name: (s["waited"], s["waits"]) for name, s in found["options"].items() if s["waited"] or s["waits"]} == {}


@pytest.mark.parametrize("what", ["launches", "peak_gib"])
def test_no_recipe_costs_more_than_was_recorded(found: Any, what: str) -> None:
    compared = {}
    for name, before in RECORDED["recipes"].items():
        now = found["recipes"][name]
        assert (now["batch"], now["side"]) == (before["batch"], before["side"]), f"{name} has changed; {_RECORD}"
        if abs(now[what] - before[what]) > max(_TOLERANCE * before[what], 0.02):
            compared[name] = (before[what], now[what])
    assert compared == {}, f"(recorded, found) {what}; {_RECORD}"


def test_no_part_of_a_step_launches_more_than_was_recorded(found: Any) -> None:
    before, now = (
        {f"{name}: {part}": cost["launches"] for name, parts in every.items() for part, cost in parts.items()}
        for every in (RECORDED["parts"], found["parts"])
    )
    assert now.keys() == before.keys(), _RECORD
    apart = {key: (before[key], now[key]) for key in now if abs(now[key] - before[key]) > 5 + _TOLERANCE * before[key]}
    assert apart == {}, f"(recorded, found) launches; {_RECORD}"


def test_every_recipe_is_recorded(found: Any) -> None:
    assert set(RECORDED["recipes"]) == {name for name, steps in found["recipes"].items() if "as" not in steps}


def test_the_docs_have_the_recorded_figures() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for table in tables(RECORDED).split("\n\n"):
        assert table in page, _RECORD


def test_the_stub_lacks_nothing_that_a_step_calls(found: Any) -> None:
    every = [steps for part in ("recipes", "options") for steps in found[part].values() if "as" not in steps]
    assert [steps["missing"] for steps in every if steps["missing"]] == []
