"""Options of suites: what nothing would read is refused, and advice leads to what runs."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from ffcv_train.cli.suite_arguments import add_suite_options, suite_options, suite_words
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.system.errors import UserError


def parsed(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    add_suite_options(parser.add_argument_group())
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "suite"),
    [
        (["--split-seed=0"], "calibration"),
        (["--many-over=100", "--suite=selective"], "groups"),
        (["--few-under=3"], "groups"),
        (["--knn-k=50", "--suite=groups"], "ood"),
        (["--corruption-seed=1"], "corruptions"),
        (["--corruption-samples=0", "--suite=ood"], "corruptions"),
    ],
)
def test_a_number_without_its_suite_is_refused(words: list[str], suite: str) -> None:
    name = words[0].partition("=")[0]
    with pytest.raises(UserError, match=f"^{name} is for --suite {suite}; add the suite, or leave it out$"):
        suite_options(parsed(*words), {})


@pytest.mark.parametrize("word", ["--corruption-seed=0", "--corruption-samples=5", "--frost-images=f"])
def test_what_makes_corruptions_does_not_go_with_prepared_ones(word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(UserError, match=f"{name} {value} is for corruptions that are made here.*; leave one out"):
        suite_options(parsed("--suite=corruptions", "--corrupted-data=c", word), {})


def test_what_is_not_given_is_the_default_and_not_passed_on() -> None:
    given = parsed("--suite=calibration,ood", "--knn-k=7", "--ood-data", "a", "b")
    assert suite_options(given, {}) == SuiteOptions(("calibration", "ood"), neighbour=7, ood_data=("a", "b"))
    assert suite_words(given) == ["--suite=calibration,ood", "--ood-data", "a", "b", "--knn-k=7"]
    with pytest.raises(UserError, match="--split-seed must be a whole number"):
        suite_options(parsed("--suite=calibration", "--split-seed="), {})


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-v2", "a", "imagenet-sketch", "real", "imagenet-real"])
def test_data_sets_by_name_are_variants(name: str) -> None:
    with pytest.raises(
        UserError, match=r"give --suite variants --(variant-data DATA|real-labels real\.json)"
    ) as stopped:
        suite_options(parsed(f"--suite={name}"), {})
    assert ("real-labels" in str(stopped.value)) == ("real" in name)


def test_the_training_set_of_the_checkpoint_is_what_was_drawn_of_it() -> None:
    data = {"train_dataset": "t.beton", "subset": "s.txt", "sampling": "w.txt"}
    found = suite_options(parsed("--suite=groups"), data)
    assert (found.train_set, found.train_subset, found.train_weights) == ("t.beton", "s.txt", "w.txt")
    balanced = suite_options(parsed("--suite=groups"), {**data, "subset": "", "sampling": "class_balanced"})
    assert (balanced.train_set, balanced.train_subset, balanced.train_weights) == ("t.beton", "", "")
    named = suite_options(parsed("--suite=groups", "--train-set=t.beton"), data)
    assert (named.train_set, named.train_subset, named.train_weights) == ("t.beton", "", "")


def test_records_of_before_an_option_stand() -> None:
    """`of` says what a record depends on: options that came later are there only where they are given."""
    made, whole = SuiteOptions(("corruptions",)), SuiteOptions(("groups",), train_set="t")
    assert made.of("corruptions") == {"corrupted_data": "", "seed": 0}
    frost = SuiteOptions(("corruptions",), frost_images="f").of("corruptions")
    assert frost == {**made.of("corruptions"), "frost_images": str(Path("f").resolve())}
    assert set(whole.of("groups")) == {"train_set", "many_over", "few_under"}
    for suite in ("groups", "ood"):
        part = SuiteOptions((suite,), train_set="t", train_subset="s").of(suite)
        assert part["train_subset"] == str(Path("s").resolve())
    prepared = SuiteOptions(("corruptions",), corrupted_data="c").of("corruptions")
    assert prepared["images"] == "whole"  # those of before were cut
