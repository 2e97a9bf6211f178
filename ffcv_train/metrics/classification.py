"""Top-k accuracy, NLL and calibration error as sums over samples.

Sums add: over batches, over ranks, in any order, to the same counts. Means are taken once, at the end, so that the
result does not depend on how the samples were split into batches.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BINS = 15
TOP_K = 5


def confidence_bins(confidence: Tensor) -> Tensor:
    """The bin, int64 in [0, 15), of each confidence (float64, any shape): bin i is (i/15, (i+1)/15]; NaN goes last."""
    edges = torch.arange(1, BINS, dtype=torch.float64, device=confidence.device) / BINS
    return torch.bucketize(confidence, edges)


class MetricSums:
    """Sums over samples of what top-1, top-5, NLL and the expected calibration error are made of.

    Rules:
    - The classes are ranked by logit, equal logits by class index, lower first (as `argmax` does); a label counts as
      a top-k hit if it ranks among the first k. NaN ranks before everything, so a sample with a NaN logit never gains
      from it. With fewer than 5 classes, top-5 is top-K.
    - NLL is −log softmax(logits)[label] in nats.
    - The calibration error (Guo et al., arXiv:1706.04599) bins samples by confidence, the largest softmax probability,
      into 15 equal bins (0, 1/15], (1/15, 2/15], …, (14/15, 1].

    Counts are int64, other sums float64 (so `device` must know float64), and softmax is taken in float64. No method
    but `compute` waits for the device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # [count, top-1 hits, top-5 hits, bin counts…, bin hits…] and [NLL, bin confidences…]
        self.integers = torch.zeros(3 + 2 * BINS, dtype=torch.int64, device=device)
        self.reals = torch.zeros(1 + BINS, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K] of any floating type, labels int64 [B] in [0, K), on this object's device.

        Raises `ValueError` on other shapes or types. Labels out of range are the caller's to refuse.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.is_floating_point():
            raise ValueError(
                f"need floating-point logits [B, K] and labels [B], not {logits.dtype} {list(logits.shape)} "
                f"and {list(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64, not {labels.dtype}")
        if len(logits) == 0:
            return
        logits = logits.detach()
        classes = torch.arange(logits.shape[1], device=logits.device)
        own = logits.gather(1, labels[:, None])
        # "not ≤" instead of ">" ranks NaN first, the label's own included: its rank is then K.
        ahead = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
        rank = ahead.sum(dim=1)
        hit = rank < 1
        hit_5 = rank < min(TOP_K, logits.shape[1])

        log_probabilities = torch.log_softmax(logits.double(), dim=1)
        nll = -log_probabilities.gather(1, labels[:, None]).sum()
        confidence = log_probabilities.amax(dim=1).exp()
        bins = confidence_bins(confidence)
        # A mask instead of index_add_, which adds floats in no fixed order on a GPU.
        member = bins[:, None] == torch.arange(BINS, device=logits.device)
        zero = torch.zeros((), dtype=torch.float64, device=logits.device)
        confidences = torch.where(member, confidence[:, None], zero).sum(dim=0)

        count = torch.full((), len(logits), dtype=torch.int64, device=logits.device)
        scalars = torch.stack([count, hit.sum(), hit_5.sum()])
        self.integers += torch.cat([scalars, member.sum(dim=0), (member & hit[:, None]).sum(dim=0)])
        self.reals += torch.cat([nll[None], confidences])

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """The sums over both sets of samples."""
        result = MetricSums(self.integers.device)
        result.integers = self.integers + other.integers
        result.reals = self.reals + other.reals
        return result

    def reduce(self, all_reduce: Callable[[Tensor], Any]) -> "MetricSums":
        """Sum over ranks in place and return self; `all_reduce(tensor)` sums a tensor over ranks in place."""
        all_reduce(self.integers)
        all_reduce(self.reals)
        return self

    def compute(self) -> dict[str, Any]:
        """The metrics: `count`; `top_1`, `top_5`, `ece` as fractions in [0, 1]; `nll` in nats; `bins`.

        `bins` holds three lists of 15: `count`, and `confidence` and `accuracy`, the bin's means, None where the bin
        is empty. A NaN logit makes `nll` and `ece` NaN. Raises `ValueError` where no sample was counted.
        """
        count, hits, hits_5, *rest = self.integers.tolist()
        nll, *confidences = self.reals.tolist()
        bin_counts, bin_hits = rest[:BINS], rest[BINS:]
        if count == 0:
            raise ValueError("no sample was counted")
        gaps = (abs(hit - confidence) for hit, confidence in zip(bin_hits, confidences, strict=True))
        return {
            "count": count,
            "top_1": hits / count,
            "top_5": hits_5 / count,
            "nll": nll / count,
            "ece": math.fsum(gaps) / count,
            "bins": {
                "count": bin_counts,
                "confidence": [c / n if n else None for c, n in zip(confidences, bin_counts, strict=True)],
                "accuracy": [h / n if n else None for h, n in zip(bin_hits, bin_counts, strict=True)],
            },
        }
