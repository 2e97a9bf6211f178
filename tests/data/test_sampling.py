"""data.subset and data.sampling: files, weights, and training by them."""

from pathlib import Path

import numpy as np
import pytest

from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loader import Loader
from ffcv_train.data.loading.sampling import describe_sampling, read_subset, read_weights, sampling_weights
from ffcv_train.data.open import open_data_set
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Trainer
from tests.support.runs import ALONE, Betons, config, log, same_weights, train

LABELS = np.array([0] * 90 + [1] * 9 + [2])


def test_class_balanced_weights_give_each_class_the_same_share() -> None:
    weights = sampling_weights("class_balanced", "", LABELS)
    assert weights is not None
    assert np.bincount(LABELS, weights) == pytest.approx([1, 1, 1])
    assert describe_sampling(weights, LABELS) == (
        "an epoch draws 100 of 100 samples, about 33 of each class, a sample at most 34 times"
    )


def test_subset_and_weights_from_files(tmp_path: Path) -> None:
    subset, weights = tmp_path / "subset.txt", tmp_path / "weights.txt"
    subset.write_text("99\n0\n\n 3 \n")
    weights.write_text("\n".join(["2", *["1"] * 98, "0.5"]))
    assert read_subset(str(subset), 100).tolist() == [0, 3, 99]
    found = sampling_weights("uniform", str(subset), LABELS)
    assert found is not None and np.flatnonzero(found).tolist() == [0, 3, 99] and set(found) == {0.0, 1.0}
    both = sampling_weights(str(weights), str(subset), LABELS)
    assert both is not None and both[[0, 3, 99]].tolist() == [2, 1, 0.5] and both.sum() == 3.5
    balanced = sampling_weights("class_balanced", str(subset), LABELS)
    assert balanced is not None and balanced[[0, 3, 99]].tolist() == [0.5, 0.5, 1] and balanced.sum() == 2
    assert sampling_weights("uniform", "", LABELS) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0\n100\n", "line 2 is '100', and the samples are numbered 0 to 99"),
        ("-1", "line 1 is '-1'"),
        ("1.5", "line 1 is '1.5'"),
        ("cat.jpg", "line 1 is 'cat.jpg'"),
        ("7\n8\n7", "sample 7 stands in lines 1 and 3"),
        ("\n \n", "holds nothing"),
    ],
)
def test_what_is_no_subset_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "subset.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_subset(str(file), 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n" * 99, "has 99 weights, and there are 100 samples"),
        ("1\n" * 99 + "-1", "line 100 is '-1'"),
        ("1\n" * 99 + "nan", "line 100 is 'nan'"),
        ("1\n" * 99 + "inf", "line 100 is 'inf'"),
        ("0\n" * 100, "all weights are 0"),
    ],
)
def test_what_are_no_weights_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "weights.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_weights(str(file), 100)


def test_a_word_that_is_no_rule_names_the_rules() -> None:
    with pytest.raises(UserError, match=r"data\.sampling=balanced is neither uniform nor class_balanced nor a file"):
        sampling_weights("balanced", "", LABELS)


def test_a_run_draws_by_them_and_goes_on_with_no_others(small_betons: Betons, tmp_path: Path) -> None:
    labels = open_data_set(small_betons[0]).labels
    subset = tmp_path / "subset.txt"
    subset.write_text("\n".join(map(str, np.flatnonzero((labels != 0) | (np.arange(len(labels)) % 3 == 0)))))
    more = (f"--data.subset={subset}", "--data.sampling=class_balanced")
    whole = train(small_betons, tmp_path, "--logging.run=whole", *more)
    trainer = Trainer(config(small_betons, tmp_path, "--logging.run=parts", *more), ALONE)
    assert any("of each class, a sample at most" in note for note in trainer.notes)
    assert trainer.state.facts.samples == len(subset.read_text().split()) < len(labels)
    trainer.train_loader.close()
    trainer.val_loader.close()
    again = train(small_betons, tmp_path, "--logging.run=again", *more)
    assert same_weights(whole / "final.pt", again / "final.pt")
    assert len(log(whole)) == 2
    with pytest.raises(UserError, match=r"was trained with another data\.train_dataset"):  # as another subset is
        subset.write_text("\n".join(map(str, range(trainer.state.facts.samples))))
        train(small_betons, tmp_path, "--logging.run=whole", "--training.epochs=3", "--training.resume=auto", *more)


def test_loader_takes_weights(small_betons: Betons) -> None:
    data_set = open_data_set(small_betons[0])
    weights = (data_set.labels == 2).astype(int)
    given = {"crop": RandomResizedCrop(), "resolution": 24, "device": "cpu", "num_workers": 1}
    with Loader(data_set, 8, weights=weights, **given) as loader:
        assert len(loader) == weights.sum() // 8
        assert all((labels == 2).all() for _, labels, *_ in loader)
    for wrong, words in ((weights[:-1], "one number for each"), (-weights, "at least 0"), (weights * 0, "all of them")):
        with pytest.raises(ValueError, match=words):
            Loader(data_set, 8, weights=wrong, **given)
    with pytest.raises(ValueError, match="order is sequential"):
        Loader(data_set, 8, weights=weights, **(given | {"crop": CenterCrop()}))
