"""Paired differences against SciPy's tests, simulation and the tables of textbooks."""

import numpy as np
import pytest
from scipy import stats

from ffcv_train.metrics.paired import bootstrap_interval, paired_interval, seeds_needed


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.3, 1, 7), random.normal(0, 1, 7)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a - b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((a - b).mean())
    assert found.exceeded == (stats.ttest_rel(a, b).pvalue < 0.05)
    assert paired_interval([0.1, 0.1]).exceeded
    assert not paired_interval([0.0, 0.0]).exceeded
    with pytest.raises(ValueError, match="two or more, not 1"):
        paired_interval([0.1])


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5), (6.0, 3)])
def test_seeds_needed_are_those_of_the_tables(effect: float, pairs: int) -> None:
    """G*Power's: difference of two dependent means, two tails, α 0.05, power 0.8."""
    spread = np.array([-1.0, 0.0, 1.0])  # of standard deviation 1
    assert seeds_needed(spread + effect) == pairs
    assert seeds_needed(-spread - effect) == pairs


def test_seeds_without_end_and_without_spread() -> None:
    assert seeds_needed([-1.0, 1.0]) is None
    assert seeds_needed([-1.0, 1.01]) is None
    assert seeds_needed([0.5, 0.5]) == 2
    assert seeds_needed([0.0, 0.0]) is None
    assert seeds_needed([10.0, 10.001]) == 2


def test_the_bootstrap_is_a_function_of_the_seed_and_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 2000, p=[0.05, 0.85, 0.1])
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == values.mean()
    # The quantiles of 2,000 resamples spread by about 3% of the half width.
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.15 * half)
    assert bootstrap_interval(values) == found
    assert bootstrap_interval(values, seed=1) != found
