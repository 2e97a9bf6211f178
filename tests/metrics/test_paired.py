"""Paired differences against SciPy's tests, simulation and the tables of textbooks."""

import numpy as np
import pytest
import torch
from scipy import stats

from ffcv_train.metrics.paired import bootstrap_intervals, paired_interval, seeds_needed
from ffcv_train.metrics.resampling import aurc_of, calibration_error_of, coverage_of, mean_of
from ffcv_train.metrics.selective import confidence_scores, selective
from ffcv_train.metrics.temperature import brier_scores, calibration


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.3, 1, 7), random.normal(0, 1, 7)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a - b)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((a - b).mean())
    assert found.exceeded == (stats.ttest_rel(a, b).pvalue < 0.05)
    with pytest.raises(ValueError, match="two or more, not 1"):
        paired_interval([0.1])


@pytest.mark.parametrize("pair", [[1 / 300, 1 / 300], [0.0, 0.0, 0.0], [211 / 300 - 210 / 300, 31 / 300 - 30 / 300]])
def test_differences_that_are_all_equal_tell_no_spread(pair: list[float]) -> None:
    """Of accuracies on 300 samples, two differences are often the same: that is no certainty."""
    assert paired_interval(pair) is None
    assert seeds_needed(pair) is None


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5), (6.0, 3)])
def test_seeds_needed_are_those_of_the_tables(effect: float, pairs: int) -> None:
    """G*Power's: difference of two dependent means, two tails, α 0.05, power 0.8."""
    spread = np.array([-1.0, 0.0, 1.0])  # of standard deviation 1
    assert seeds_needed(spread + effect) == pairs
    assert seeds_needed(-spread - effect) == pairs


def test_seeds_without_end() -> None:
    assert seeds_needed([-1.0, 1.0]) is None
    assert seeds_needed([-1.0, 1.01]) is None
    assert seeds_needed([10.0, 10.001]) == 2


def test_the_bootstrap_is_a_function_of_the_seed_and_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 2000, p=[0.05, 0.85, 0.1])
    (found,) = bootstrap_intervals(mean_of(values), len(values))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    # The quantiles of 2,000 resamples spread by about 3% of the half width.
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.15 * half)
    assert bootstrap_intervals(mean_of(values), len(values)) == [found]
    assert bootstrap_intervals(mean_of(values), len(values), seed=1) != [found]


def test_the_interval_of_a_calibration_error_lies_around_it() -> None:
    """Of a network that is calibrated all of the error is chance, and a resample has more of it."""
    random = np.random.default_rng(2)
    confidence = random.uniform(0.2, 1, 3000)
    correct = random.uniform(0, 1, 3000) < confidence
    statistic = calibration_error_of(confidence, correct.astype(np.float64))
    counts = [np.bincount(random.integers(0, 3000, 3000), minlength=3000) for _ in range(200)]
    (found,) = bootstrap_intervals(statistic, 3000, 400)
    assert np.mean([statistic(one) for one in counts]) > 1.2 * found.mean
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("digits", [1, 12])
def test_metrics_by_counts_are_those_of_the_gathered_samples(digits: int) -> None:
    """With one digit, scores are equal in large groups."""
    random = np.random.default_rng(3)
    logits = torch.from_numpy(random.normal(0, 2, (500, 10)).round(digits)).float()
    confidence = logits.double().softmax(dim=1).amax(dim=1).numpy()
    right = torch.from_numpy(random.uniform(size=500) < confidence)
    labels = torch.where(right, logits.argmax(dim=1), logits.argmin(dim=1))
    correct = right.numpy().astype(np.float64)
    for picked in (np.arange(500), random.integers(0, 500, 500), np.full(500, 7)):
        counts = np.bincount(picked, minlength=500)
        expected = calibration(logits[picked], labels[picked])
        assert calibration_error_of(confidence, correct)(counts) == pytest.approx(expected["ece"], abs=1e-12)
        brier = brier_scores(logits, labels)
        assert mean_of(brier)(counts) == pytest.approx(expected["brier"])
        for score in confidence_scores(logits).values():
            wanted = selective(score[picked], correct[picked] == 1)
            assert aurc_of(score, correct)(counts) == pytest.approx(wanted["aurc"], abs=1e-12)
            for level, accepted in wanted["coverage_at_risk"].items():
                assert coverage_of(score, correct, float(level))(counts) == accepted
