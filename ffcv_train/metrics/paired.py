"""Differences between two procedures measured in pairs: over seeds, or over the samples of one seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
RESAMPLES = 2000
_ROUNDING = 1e-9
"""Differences that vary by less than this share of their mean are equal: one count of samples, by other roundings"""


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


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of two differences or more, as a paired t-test has it.

    None where all are equal, as differences of accuracies on few samples often are: a spread of nothing would make an
    interval without width of what is too coarse to tell one. Raises `ValueError` for fewer than two.
    """
    mean, spread, count = _mean_and_spread(differences)
    if not spread:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * spread / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Pairs with which a two-sided t-test at 5% sees a difference of this mean and spread with a chance of `POWER`.

    None where more than `MOST_SEEDS` are needed, as for a mean of 0, and where all differences are equal. It takes mean
    and spread for the true ones, and of a few seeds they are rough. Raises `ValueError` for fewer than two differences.
    """
    mean, spread, _ = _mean_and_spread(differences)
    if not spread:
        return None
    effect = abs(mean) / spread
    counts = np.arange(2, MOST_SEEDS + 1)
    limit, shift = stats.t.ppf((1 + LEVEL) / 2, counts - 1), effect * np.sqrt(counts)
    # Far out, SciPy's distribution is not a number; there one side has all of it.
    right = np.nan_to_num(stats.nct.sf(limit, counts - 1, shift), nan=1.0)
    left = np.nan_to_num(stats.nct.cdf(-limit, counts - 1, shift), nan=0.0)
    enough = np.flatnonzero(right + left >= POWER)
    return int(counts[enough[0]]) if len(enough) else None


def bootstrap_intervals(
    difference: Callable[[np.ndarray], np.ndarray], samples: int, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Intervals of differences, float64 [M], of metrics over `samples` ≥ 1 test samples, drawn anew `resamples` times.

    `difference` takes how often each sample was drawn, int64 [samples]. Percentile intervals, moved by how far the
    resamples' mean lies from the difference itself: chance adds to the calibration error of a sample, and again to that
    of a resample. They say what other test samples would change, not what another training would.
    """
    random = np.random.default_rng(seed)
    found = difference(np.ones(samples, dtype=np.int64))
    drawn = np.empty((resamples, len(found)))
    for row in drawn:
        row[:] = difference(np.bincount(random.integers(0, samples, samples), minlength=samples))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) - (drawn.mean(axis=0) - found)
    return [Interval(*map(float, one)) for one in zip(found, low, high, strict=True)]


def _mean_and_spread(differences: Sequence[float]) -> tuple[float, float, int]:
    """Mean, sample standard deviation (0 where it is rounding's), and number."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a spread over seeds needs two or more, not {len(values)}")
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    return mean, spread if spread > _ROUNDING * abs(mean) else 0.0, len(values)
