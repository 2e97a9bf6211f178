"""The stub device itself: it finds what it is for, and finds nothing where nothing is wrong."""

from typing import Any

import pytest

from tests.cuda.stub_run import findings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return findings(tmp_path_factory, "stub_itself")


def test_copies_arrive_whenever_the_device_works(found: Any) -> None:
    assert found["copied_back"] == [True] * 4
    assert found["pageable_is_staged"]


def test_a_missing_wait_is_seen_by_the_late_device_only(found: Any) -> None:
    assert found["unordered"] == {"early": True, "late": False}
    assert found["overwritten"] == {"early": True, "late": False}


def test_pytorchs_detector_of_waits_works_above_it(found: Any) -> None:
    assert found["detected"] == {"item": True, "launch": False, "copy": False}


def test_its_memory_ends_and_searches_of_cudnn_are_seen(found: Any) -> None:
    assert found["out_of_memory"] == "OutOfMemoryError"
    assert found["searches"]["first"] > 0 and found["searches"]["second"] == 0
    assert found["missing"] == []
