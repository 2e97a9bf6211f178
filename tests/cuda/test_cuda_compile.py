"""torch.compile above the device: a graph per resolution, no breaks, kernels that Triton has made."""

from pathlib import Path
from typing import Any

import pytest

from tests.cuda.stub_run import findings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, small_betons: tuple[Path, Path]) -> Any:
    return findings(tmp_path_factory, "compiled", {"beton": str(small_betons[0])})


def test_a_network_is_compiled_once_per_resolution_in_one_graph(found: Any) -> None:
    growing = found["counted"]["resnet"]
    assert growing["sides"] == [32, 48, 48]
    assert growing["graphs"] == [1, 2, 2]


@pytest.mark.parametrize("network", ["zipf", "transformer"])
def test_evaluation_between_epochs_compiles_nothing(found: Any, network: str) -> None:
    assert found["counted"][network]["graphs"] == [1, 1]


def test_inductor_and_triton_work_above_the_stub(found: Any) -> None:
    assert found["inductor"]["default"]["Triton"] > 0
    assert found["inductor"]["default"]["graphs"] == 0
    assert found["missing"] == []


def test_cuda_graphs_are_a_launch_each(found: Any) -> None:
    plain, replayed = (found["inductor"][mode] for mode in ("default", "reduce-overhead"))
    assert replayed["graphs"] == 2  # forward and backward
    assert replayed["Triton"] == 0
    assert replayed["all"] < plain["all"]
