"""How far apart features lie within and between classes (Kornblith et al., arXiv:2010.16402)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ffcv_train.metrics.logits_file import LogitsFile, row_blocks
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class FeatureMetrics:
    """Means of d = 1 − cosine similarity over pairs of samples, a sample with itself included."""

    d_within: float
    """Over pairs within a class, then over classes; in [0, 1]"""
    d_total: float
    """Over pairs of samples of any two classes, then over the pairs of classes; in [0, 1]"""
    r_squared: float
    """1 − d_within / d_total, the separability of classes; NaN where d_total is 0"""
    samples: int
    classes: int
    """Classes that have samples; the others count nowhere"""
    smallest_class: int
    """Samples of the class that has fewest. With n samples a class, d_within is (n − 1)/n of its value over pairs of
    different samples: 0 at n = 1"""
    zero_features: int
    """Samples whose features are all 0; their cosine similarity with any sample counts as 0"""


class FeatureSums:
    """Sums over samples of unit vectors per class, from which `compute` takes the metrics exactly.

    With u the unit vectors and μ_k their mean over class k, the mean over the pairs of a class of 1 − u·v is
    1 − ‖μ_k‖², so that one pass and float64 [K, D] suffice. Sums add: over batches, files, ranks.
    """

    def __init__(self, num_classes: int, width: int, device: torch.device | str = "cpu") -> None:
        self.vectors = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.zeros = torch.zeros((), dtype=torch.int64, device=device)
        self.strange = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: features [B, D] of any floating type, labels int64 [B] in [0, K), on this object's device."""
        x = features.detach().double()
        self.strange += (~torch.isfinite(x)).any(dim=1).sum()
        # By the largest entry first: squares of tiny or huge features leave float64's range.
        x = x / x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        norms = x.norm(dim=1, keepdim=True)
        zero = norms == 0
        self.zeros += zero.sum()
        self.vectors.index_add_(0, labels, x / norms.masked_fill(zero, 1.0))
        self.counts.index_add_(0, labels, torch.ones_like(labels))

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> "FeatureSums":
        """Sum over ranks in place and return self; `all_reduce(tensor)` sums a tensor over ranks in place."""
        for tensor in (self.vectors, self.counts, self.zeros, self.strange):
            all_reduce(tensor)
        return self

    def compute(self) -> FeatureMetrics:
        """The metrics. Raises `ValueError` where no sample was added or a feature was not finite."""
        if int(self.strange):
            raise ValueError(f"the features of {int(self.strange):,} samples are not finite")
        present = self.counts > 0
        if not bool(present.any()):
            raise ValueError("no sample was added")
        counts = self.counts[present]
        means = self.vectors[present] / counts[:, None]
        d_within = 1 - float(means.square().sum(dim=1).mean())
        d_total = 1 - float(means.mean(dim=0).square().sum())
        # Rounding may leave a difference where all features are one vector.
        d_within, d_total = (0.0 if abs(d) < 1e-12 else d for d in (d_within, d_total))
        r_squared = 1 - d_within / d_total if d_total else float("nan")
        return FeatureMetrics(
            d_within, d_total, r_squared, int(counts.sum()), len(counts), int(counts.min()), int(self.zeros)
        )


def feature_metrics(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> FeatureMetrics:
    """The metrics of `features` [N, D] and `labels` int64 [N], in blocks, so that both may be mapped from a file."""
    sums = FeatureSums(num_classes, features.shape[1])
    for rows in row_blocks(len(labels), features.shape[1]):
        sums.update(features[rows], labels[rows])
        progress(rows.stop, len(labels))
    return sums.compute()


def metrics_of(file: LogitsFile, progress: Callable[[int, int], None] = lambda done, of: None) -> FeatureMetrics:
    """`feature_metrics` of a file. Raises `UserError` where it has no features, or some that are not finite."""
    try:
        return feature_metrics(file.need_features(), file.labels, file.num_classes, progress)
    except ValueError as error:
        raise UserError(f"{error} in {file.path}; the training that made its checkpoint diverged") from None


def remarks(metrics: FeatureMetrics) -> list[str]:
    """What a reader of the numbers should know, a sentence each."""
    found = []
    if metrics.smallest_class < 10:
        found.append(
            f"samples of the smallest class: {metrics.smallest_class}; as a sample's distance to itself counts, "
            "d_within is too small and R² too large, use a larger data set"
        )
    if metrics.zero_features:
        found.append(f"{metrics.zero_features:,} samples have features that are all 0; their cosine counts as 0")
    return found
