"""Two ranks over NCCL: a whole run, a signal to one of them, a rank that fails."""

from pathlib import Path
from typing import Any

import pytest

from tests.cuda.stub_run import findings

Betons = tuple[Path, Path]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, small_betons: Betons) -> Any:
    arguments = {"train": str(small_betons[0]), "val": str(small_betons[1])}
    return findings(tmp_path_factory, "ranks", arguments, ranks=2)


def test_two_ranks_train_with_passes_online_smoothing_and_averaged_weights(found: Any) -> None:
    assert [rank["backend"] for rank in found] == ["nccl", "nccl"]
    assert [rank["device"] for rank in found] == ["cuda:0", "cuda:1"]
    for rank in found:
        assert rank["run"]["ended"] == "whole"
        assert rank["run"]["wrapped"] == "DistributedDataParallel"
        assert rank["run"]["at"] == [2, 0]
    assert found[0]["run"]["reduced"] == found[1]["run"]["reduced"] > 0


def test_batchnorm_of_all_ranks_gathers_in_every_pass_and_reduces_in_every_backward_pass(found: Any) -> None:
    """Three steps of two passes: a collective per layer, and each of DDP's as without."""
    for rank in found:
        own, shared = rank["own_norms"], rank["shared_norms"]
        assert (own["ended"], shared["ended"], shared["at"]) == ("whole", "whole", [1, 0])
        assert own["norms"] == 0 < shared["norms"]
        calls = 3 * 2 * shared["norms"]
        assert shared["gathered"] - own["gathered"] == calls
        assert shared["reduced"] - own["reduced"] == calls


def test_sums_over_ranks_are_exact(found: Any) -> None:
    assert [rank["sums"] for rank in found] == [[3, 20], [3, 20]]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(found: Any) -> None:
    for rank in found:
        assert rank["signal"]["ended"].startswith("stopped by SIGTERM; continue from /stopped/last.pt")
    assert found[0]["signal"]["at"] == found[1]["signal"]["at"] == [0, 2]


def test_a_rank_that_fails_does_not_wait_for_the_others(found: Any) -> None:
    assert found[1]["failed"] == "sample 7 is damaged"
    assert found[1]["aborted"] == 1


def test_a_rank_that_waits_for_one_that_failed_ends_at_its_launchers_signal(found: Any) -> None:
    assert found[0]["failed"].startswith("rank 0 got SIGTERM and has heard of no other rank for")


def test_the_stub_lacks_nothing_that_ranks_call(found: Any) -> None:
    assert [rank["missing"] for rank in found] == [[], []]
