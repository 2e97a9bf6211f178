"""Temperature scaling (Guo et al., arXiv:1706.04599), and calibration before and after it, in float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ffcv_train.metrics.classification import BINS, MetricSums

RANGE = (1e-3, 1e3)
_ROWS = 4096


@dataclass(frozen=True)
class Temperature:
    """What divides the logits."""

    value: float
    at_edge: bool
    """Whether NLL still falls at the end of `RANGE`: samples that are all told apart, or by nothing but chance"""


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The T in `RANGE` at which softmax(z / T) has the least NLL.

    `logits` [N, K] on the CPU, finite; `labels` int64 [N]. NLL is convex in 1/T, and its slope there is
    mean(Σ_k q_k z_k − z_gt), of which this is the root. Raises `ValueError` for no samples.
    """
    if not len(logits):
        raise ValueError("no samples to fit a temperature to")

    def slope(log_t: float) -> float:
        total = 0.0
        for z, y in _parts(logits, labels):
            q = (z * np.exp(-log_t)).softmax(dim=1)
            total += float(((q * z).sum(dim=1) - z.gather(1, y[:, None]).squeeze(1)).sum())
        return total

    low, high = np.log(RANGE)
    # By falling T the slope in 1/T rises.
    if slope(low) <= 0:
        return Temperature(RANGE[0], True)
    if slope(high) >= 0:
        return Temperature(RANGE[1], True)
    return Temperature(float(np.exp(brentq(slope, low, high, xtol=1e-10, rtol=1e-12))), False)


def calibration(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Any]:
    """Top-1, NLL, calibration errors and Brier score of softmax(z / T), as `MetricSums.compute` has them, and more.

    `ece_mass` is the calibration error over 15 bins of equally many samples (equal confidences share a bin), `brier`
    the mean of Σ_k (q_k − y_k)², in [0, 2]. `logits` [N, K] on the CPU, finite, N ≥ 1; `labels` int64 [N].
    """
    sums = MetricSums()
    confidences, hits = [], []
    for z, y in _parts(logits, labels):
        sums.update(z / temperature, y)
        confidences.append((z / temperature).softmax(dim=1).amax(dim=1).numpy())
        hits.append((z.argmax(dim=1) == y).numpy())
    return {
        **sums.compute(),
        "ece_mass": mass_calibration_error(np.concatenate(confidences), np.concatenate(hits)),
        "brier": float(brier_scores(logits, labels, temperature).mean()),
    }


def brier_scores(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Σ_k (q_k − y_k)² of each sample with q = softmax(z / T), float64 [N] in [0, 2].

    `logits` [N, K] on the CPU, finite, N ≥ 1; `labels` int64 [N].
    """
    scores = []
    for z, y in _parts(logits, labels):
        q = (z / temperature).softmax(dim=1)
        scores.append((q.square().sum(dim=1) - 2 * q.gather(1, y[:, None]).squeeze(1) + 1).numpy())
    return np.concatenate(scores)


def mass_calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> float:
    """Σ_b n_b/N |accuracy_b − confidence_b| over bins that hold equally many samples, of equal confidences whole.

    `confidence` float64 [N], `hit` bool [N], N ≥ 1.
    """
    ordered = np.sort(confidence)
    ends = np.unique(ordered[-(-np.arange(1, bins + 1) * len(ordered) // bins) - 1])
    members = np.searchsorted(ends, confidence)
    gaps = np.bincount(members, hit.astype(np.float64) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def split_halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions 0 … count − 1 in two random halves, each in order; the first is the smaller one of an odd count."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def _parts(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in float64, not all at once."""
    for start in range(0, len(logits), _ROWS):
        yield logits[start : start + _ROWS].double(), labels[start : start + _ROWS]
