"""Metrics of resampled test samples, each a function of how often the samples were drawn, without gathering them.

A `Statistic` takes these counts, int64 [N] with a sum of N, and gives metrics, float64 [M], of the sample in which each
sample occurs as often: what `MetricSums` and `selective` say of the gathered arrays, sorted and binned once.
"""

from collections.abc import Callable

import numpy as np
import torch

from ffcv_train.metrics.classification import confidence_bins

Statistic = Callable[[np.ndarray], np.ndarray]


def mean_of(values: np.ndarray) -> Statistic:
    """[mean] of `values`, float64 [N]."""
    return lambda counts: np.array([(counts * values).sum() / len(values)])


def calibration_error_of(confidence: np.ndarray, correct: np.ndarray) -> Statistic:
    """[expected calibration error] as `MetricSums` has it: `confidence` float64 [N], `correct` 0 or 1, [N]."""
    bins = confidence_bins(torch.from_numpy(confidence)).numpy()
    order = np.argsort(bins, kind="stable")
    gaps = (correct - confidence)[order]
    starts = np.searchsorted(bins[order], np.unique(bins))
    return lambda counts: np.array([np.abs(np.add.reduceat(counts[order] * gaps, starts)).sum() / len(gaps)])


def aurc_of(score: np.ndarray, correct: np.ndarray) -> Statistic:
    """[AURC] as `selective` has it: `score` float64 [N], `correct` 0 or 1, [N]."""
    count = len(score)
    order, starts, wrong = _ranked(score, correct)
    with_errors = np.flatnonzero(np.add.reduceat(wrong, starts))
    # An error at place p is among the first j ≥ p, of whose risks each has 1 / j of it: `after[p]` sums these, and
    # `area` those of the places 1 … p.
    after = np.cumsum((1.0 / np.arange(1, count + 1))[::-1])[::-1]
    area = np.append(0.0, np.cumsum(after))

    def statistic(counts: np.ndarray) -> np.ndarray:
        drawn, share = counts[order], np.ones(())
        if len(starts) < count:
            # Samples of equal score share the places of their group.
            errors = np.add.reduceat(drawn * wrong, starts)[with_errors]
            drawn = np.add.reduceat(drawn, starts)
            share = errors / np.maximum(drawn[with_errors], 1)
        ends = np.cumsum(drawn)[with_errors]
        return np.array([(share * (area[ends] - area[ends - drawn[with_errors]])).sum() / count])

    return statistic


def coverage_of(score: np.ndarray, correct: np.ndarray, level: float) -> Statistic:
    """[coverage at a risk of `level`] as `selective` has it: `score` float64 [N], `correct` 0 or 1, [N]."""
    count = len(score)
    order, starts, wrong = _ranked(score, correct)
    thresholds = np.append(starts[1:], count) - 1

    def statistic(counts: np.ndarray) -> np.ndarray:
        drawn = counts[order]
        accepted, errors = np.cumsum(drawn)[thresholds], np.cumsum(drawn * wrong)[thresholds]
        return np.array([accepted[errors / np.maximum(accepted, 1) <= level].max(initial=0) / count])

    return statistic


def _ranked(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order by falling score, where each group of equal ones starts in it, and 1 for each error, in that order."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return order, starts, 1.0 - correct[order]
