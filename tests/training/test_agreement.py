"""Ranks that were started differently are refused before the first step."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ffcv_train.config.schema import RunConfig
from ffcv_train.system.errors import UserError
from ffcv_train.training import agreement
from ffcv_train.training.agreement import check_ranks_agree, what_ranks_share
from ffcv_train.training.state import Facts
from tests.support.runs import ALONE, Betons, config, options, run_script

FACTS = Facts(2, ("cat", "dog"), 32, 96, {"train": "a" * 64, "val": "b" * 64})
FIRST_AND_SECOND_RANK_DIFFER = """
import os, sys
sys.path.insert(0, os.getcwd())
from ffcv_train.cli.main import run_main
from ffcv_train.cli.train import main
run_main(lambda: main(sys.argv[1:] + (["--training.seed=7"] if os.environ["RANK"] == "1" else [])))
"""


def changed(run: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **values)})


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("training", {"seed": 7}, "rank 1 has training.seed 7, rank 0 has 0;"),
        ("training", {"epochs": 3}, "training.epochs 3, rank 0 has 2"),
        ("training", {"amp": "fp16"}, "training.amp fp16"),
        ("training", {"batch_size": 8}, "training.batch_size 8"),
        ("lr", {"lr": 0.5}, "lr.lr 0.5"),
        ("loss", {"name": "ce"}, "loss.name ce"),
        ("resolution", {"max_res": 64}, "resolution.max_res 64"),
        ("model", {"arch": "cifar_resnet32"}, "model.arch cifar_resnet32"),
        ("validation", {"every": 2}, "validation.every 2"),
        ("logging", {"interval": 3}, "logging.interval 3"),
        ("data", {"num_workers": 9}, None),
        ("data", {"train_dataset": "elsewhere.beton"}, None),
        ("logging", {"folder": "elsewhere"}, None),
    ],
)
def test_options_that_differ_are_named_and_those_that_may_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, section: str, values: dict[str, Any], words: str | None
) -> None:
    run = config((tmp_path / "t.beton", tmp_path / "v.beton"), tmp_path)
    other = what_ranks_share(changed(run, section, **values), FACTS)
    monkeypatch.setattr(agreement, "from_all_ranks", lambda process, shared: [shared, other])
    if words is None:
        check_ranks_agree(ALONE, what_ranks_share(run, FACTS))
        return
    with pytest.raises(UserError) as error:
        check_ranks_agree(ALONE, what_ranks_share(run, FACTS))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"class_names": ("dog", "cat")}, "rank 1 has class 0 dog, rank 0 has cat, and 1 more differ"),
        ({"samples": 95}, "training images 95, rank 0 has 96"),
        ({"data": {"train": "c" * 64, "val": "b" * 64}}, "data.train_dataset, by its digest, cccccccccccc"),
        ({"teacher": "c" * 64}, "distill.teacher, by its digest, cccccccccccc"),
    ],
)
def test_data_that_differ_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: dict[str, Any], words: str
) -> None:
    run = config((tmp_path / "t.beton", tmp_path / "v.beton"), tmp_path)
    other = what_ranks_share(run, dataclasses.replace(FACTS, **facts))
    monkeypatch.setattr(agreement, "from_all_ranks", lambda process, shared: [shared, other])
    with pytest.raises(UserError) as error:
        check_ranks_agree(ALONE, what_ranks_share(run, FACTS))
    assert words in str(error.value)


def test_two_processes_of_different_seeds_end_in_a_sentence(small_betons: Betons, tmp_path: Path) -> None:
    program = tmp_path / "differ.py"
    program.write_text(FIRST_AND_SECOND_RANK_DIFFER)
    done = run_script(options(small_betons, tmp_path, "--logging.run=r"), 2, str(program))
    assert done.returncode != 0
    assert "error: rank 1 has training.seed 7, rank 0 has 0; start all ranks with the same options" in done.stderr
    assert not (tmp_path / "r").exists()
