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


def risk_coverage_of(score: np.ndarray, correct: np.ndarray, level: float) -> Statistic:
    """[AURC, coverage at a risk of `level`] as `selective` has them: `score` float64 [N], `correct` 0 or 1, [N]."""
    count = len(score)
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    wrong = 1.0 - correct[order]
    # An error at place p is among the first j ≥ p, of whose risks each has 1 / j of it: `after[p]` sums these, and
    # `area` those of the places 1 … p.
    places = np.arange(1, count + 1)
    after = np.cumsum((1.0 / places)[::-1])[::-1]
    area = np.append(0.0, np.cumsum(after))

    def statistic(counts: np.ndarray) -> np.ndarray:
        drawn = counts[order]
        errors = drawn * wrong
        if len(starts) < count:
            drawn, errors = np.add.reduceat(drawn, starts), np.add.reduceat(errors, starts)
        ends = np.cumsum(drawn)
        some = np.flatnonzero(errors)
        # Samples of equal score, copies among them, share the places of their group.
        share = errors[some] / drawn[some]
        aurc = (share * (area[ends[some]] - area[ends[some] - drawn[some]])).sum() / count
        accepted = ends[np.cumsum(errors) / np.maximum(ends, 1) <= level]
        return np.array([aurc, accepted.max(initial=0) / count])

    return statistic
