"""Whole runs on the device through the commands, and what is said where its memory ends."""

from pathlib import Path
from typing import Any

import pytest

from tests.cuda.stub_run import findings

Betons = tuple[Path, Path]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, small_betons: Betons) -> Any:
    return findings(tmp_path_factory, "whole_run", {"train": str(small_betons[0]), "val": str(small_betons[1])})


def test_a_run_stops_at_a_signal_and_goes_on_where_it_was(found: Any) -> None:
    run = found["run"]
    assert run["first"] == "status 143"
    assert run["at"] == [1, 2]
    assert run["second"] == "nothing"
    assert run["epochs"] == [0, 1]
    assert run["counts"] == [50, 50]
    assert run["peak_memory_gb"] > 0


def test_a_checkpoint_is_evaluated_and_its_logits_written(found: Any) -> None:
    assert found["evaluated"]["told"] == ["nothing", "nothing"]
    assert found["evaluated"]["count"] == found["evaluated"]["rows"] == 50
    assert found["evaluated"]["device"] == "CUDA stub"


def test_in_float32_means_no_tf32(found: Any) -> None:
    assert found["evaluated"]["tf32"] == [False, False]


def test_the_doctor_examines_the_device(found: Any) -> None:
    assert found["examined"]["told"] == "nothing"
    assert {"stages", "advice", "machine"} <= set(found["examined"]["keys"])


def test_too_little_memory_for_training_is_said(found: Any) -> None:
    sentence = found["out_of_memory"]["training"]
    assert sentence.startswith("the GPU has too little memory for 48 images at once; raise --training.accumulate")


def test_too_little_memory_for_validation_is_said(found: Any) -> None:
    sentence = found["out_of_memory"]["validation"]
    assert sentence.startswith("the GPU has too little memory for batches of 50 images of 128 pixels; lower")
    assert "--validation.batch_size" in sentence


@pytest.mark.parametrize(("move", "device"), [("cpu to cuda", "cuda:0"), ("cuda to cpu", "cpu")])
def test_an_optimizers_state_follows_the_weights_to_another_device(found: Any, move: str, device: str) -> None:
    assert found["optimizer"][move] == [device]


def test_the_stub_lacks_nothing_that_a_run_calls(found: Any) -> None:
    assert found["missing"] == []
