"""Differences between two procedures measured in pairs: over seeds, or over the samples of one seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean difference and where the true one lies with `LEVEL` confidence."""

    mean: float
    low: float
    high: float

    @property
    def exceeded(self) -> bool:
        """Whether the difference exceeds its interval: 0 lies outside."""
        return self.low > 0 or self.high < 0


def paired_interval(differences: Sequence[float]) -> Interval:
    """Student's interval of the mean of two differences or more, as a paired t-test has it.

    Differences that are all equal have an interval without width. Raises `ValueError` for fewer than two.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs two or more, not {len(values)}")
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Pairs with which a two-sided t-test at 5% sees a difference of this mean and spread with a chance of `POWER`.

    None where more than `MOST_SEEDS` are needed, as for a mean of 0. It takes mean and spread for the true ones, and
    of a few seeds they are rough. Raises `ValueError` for fewer than two differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a spread over seeds needs two or more, not {len(values)}")
    spread = float(values.std(ddof=1))
    if spread == 0:
        return 2 if values.mean() else None
    effect = abs(float(values.mean())) / spread
    counts = np.arange(2, MOST_SEEDS + 1)
    limit, shift = stats.t.ppf((1 + LEVEL) / 2, counts - 1), effect * np.sqrt(counts)
    # Far out, SciPy's distribution is not a number; there one side has all of it.
    right = np.nan_to_num(stats.nct.sf(limit, counts - 1, shift), nan=1.0)
    left = np.nan_to_num(stats.nct.cdf(-limit, counts - 1, shift), nan=0.0)
    enough = np.flatnonzero(right + left >= POWER)
    return int(counts[enough[0]]) if len(enough) else None


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """Percentile interval of the mean difference over samples, float64 [N ≥ 1], each drawn anew `RESAMPLES` times.

    It says what other test samples would change, not what another training would.
    """
    values = np.asarray(differences, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = np.array([values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))
