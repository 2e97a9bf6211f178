"""Statistics of logits, per sample and over a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffcv_train.metrics.classification import MetricSums
from ffcv_train.metrics.logits_file import LogitsFile, row_blocks
from ffcv_train.system.errors import UserError

THRESHOLD = 0.01
"""|z| below which the MaxSup paper's code (arXiv:2502.15798) calls a logit near zero"""

_LOGIT_BINS = 200


@dataclass(frozen=True, eq=False)
class LogitStatistics:
    """One number per sample in each array [N], float64 unless said otherwise."""

    near_zero: np.ndarray
    """Share of the sample's logits with |z| < threshold, in [0, 1]"""
    confidence: np.ndarray
    """Top-1 probability, the largest entry of softmax(z)"""
    max_logit: np.ndarray
    norm: np.ndarray
    """‖z‖₂ of the logits as they are, without subtracting their mean"""
    margin: np.ndarray
    """The largest logit minus the second largest, at least 0"""
    correct: np.ndarray
    """bool: whether the first of the largest logits is the label's"""
    metrics: dict[str, Any]
    """What `MetricSums.compute` says of all samples"""
    num_classes: int
    threshold: float
    logit_edges: np.ndarray
    """Edges of bins over all logits, float64 [B + 1]: the multiples of a width that 1, 2 or 5 times a power of 10 is"""
    logit_counts: np.ndarray
    """int64 [B]: how many of the N K logits are in each bin, [edge, next edge)"""

    def __len__(self) -> int:
        return len(self.correct)


def near_zero_share(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """The share of logits with |z| < threshold for each sample: [N, K] to float64 [N] (MaxSup paper's figure)."""
    return (logits.abs() < threshold).double().mean(dim=1)


def margin(logits: Tensor) -> Tensor:
    """The largest minus the second largest logit: [N, K] with K ≥ 2 to [N]."""
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return first - second


def logit_statistics(
    logits: Tensor,
    labels: Tensor,
    threshold: float = THRESHOLD,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> LogitStatistics:
    """The statistics of `logits` [N, K], K ≥ 2, of any floating type and `labels` int64 [N], on the CPU.

    Works in blocks, so that the logits may be mapped from a file; `progress(samples done, samples)` follows each.
    Raises `ValueError` where a logit is not finite.
    """
    count, classes = logits.shape
    sums = MetricSums()
    edges, counts = logit_bins(logits), None
    columns = {key: np.empty(count) for key in ("near_zero", "confidence", "max_logit", "norm", "margin")}
    correct = np.empty(count, dtype=bool)
    for rows in row_blocks(count, classes):
        z, y = logits[rows].double(), labels[rows]
        if not bool(torch.isfinite(z).all()):
            first = rows.start + int((~torch.isfinite(z)).any(dim=1).nonzero()[0])
            raise ValueError(f"the logits of sample {first} are not finite")
        sums.update(logits[rows], y)
        # A multiple of the width may round to the other side of a logit that is one.
        block = np.histogram(z.numpy().clip(edges[0], edges[-1]), edges)[0]
        counts = block if counts is None else counts + block
        largest, predicted = z.max(dim=1)
        columns["near_zero"][rows] = near_zero_share(z, threshold)
        columns["confidence"][rows] = torch.softmax(z, dim=1).amax(dim=1)
        columns["max_logit"][rows] = largest
        columns["norm"][rows] = z.norm(dim=1)
        columns["margin"][rows] = margin(z)
        correct[rows] = predicted == y
        progress(rows.stop, count)
    assert counts is not None
    return LogitStatistics(
        **columns,
        correct=correct,
        metrics=sums.compute(),
        num_classes=classes,
        threshold=float(threshold),
        logit_edges=edges,
        logit_counts=counts,
    )


def logit_bins(logits: Tensor, most: int = _LOGIT_BINS) -> np.ndarray:
    """Edges of at most `most` bins that hold all of `logits` [N, K]: multiples of 1, 2 or 5 times a power of 10.

    Logits that are not finite are not looked at.
    """
    low, high = np.inf, -np.inf
    for rows in row_blocks(*logits.shape):
        finite = logits[rows][torch.isfinite(logits[rows])].double()
        if finite.numel():
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        low = high = 0.0
    least = max(high - low, 1e-6) / (most - 2)
    power = 10.0 ** np.floor(np.log10(least))
    width = power * next(step for step in (1, 2, 5, 10) if step * power >= least)
    first = np.floor(low / width)
    return (first + np.arange(np.floor(high / width) - first + 2)) * width


def statistics_of(
    file: LogitsFile, threshold: float, progress: Callable[[int, int], None] = lambda done, of: None
) -> LogitStatistics:
    """`logit_statistics` of a file. Raises `UserError` where it has one class only, or logits that are not finite."""
    if file.num_classes < 2:
        raise UserError(f"{file.path} has {file.num_classes} class, and the margin needs two; give another file")
    try:
        return logit_statistics(file.logits, file.labels, threshold, progress)
    except ValueError as error:
        raise UserError(f"{error} in {file.path}; the training that made its checkpoint diverged") from None


def summarise_logits(statistics: LogitStatistics) -> dict[str, Any]:
    """The numbers of a table: metrics, mean near-zero share, and mean, standard deviation and quartiles of the rest.

    `right` and `wrong` hold those of right and wrong predictions apart; None where there are none.
    """
    quantities = ("max_logit", "norm", "margin", "confidence", "near_zero")

    def of(mask: np.ndarray) -> dict[str, Any] | None:
        if not mask.any():
            return None
        result: dict[str, Any] = {"count": int(mask.sum())}
        for name in quantities:
            values = getattr(statistics, name)[mask]
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            result[name] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "quartiles": [float(low), float(middle), float(high)],
            }
        return result

    return {
        "samples": len(statistics),
        "classes": statistics.num_classes,
        "threshold": statistics.threshold,
        **{key: statistics.metrics[key] for key in ("top_1", "top_5", "nll", "ece")},
        "near_zero_share": float(statistics.near_zero.mean()),
        "all": of(np.ones(len(statistics), dtype=bool)),
        "right": of(statistics.correct),
        "wrong": of(~statistics.correct),
    }
