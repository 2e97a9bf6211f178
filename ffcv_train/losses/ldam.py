"""Label-distribution-aware margins with deferred re-weighting (Cao et al., arXiv:1906.07413)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ffcv_train.losses.base import Criterion, counts_of_all_classes
from ffcv_train.losses.weighted_ce import class_weights, weighted_cross_entropy


def class_margins(counts: Tensor, largest: float) -> Tensor:
    """Δ_k ∝ n_k^(−1/4), the rarest class's margin being `largest`; `counts` n: float64 [K], at least 1."""
    margins = counts**-0.25
    return margins * (largest / margins.max())


def ldam(logits: Tensor, targets: Tensor, margins: Tensor, scale: float, weights: Tensor) -> Tensor:
    """−w_gt log softmax(s (z − Δ_gt e_gt))_gt per sample: the true class must lead by its margin.

    `logits` z: [B, K], float32 or float64; `targets`: int64 [B]; `margins` Δ, `weights` w: [K], same type; `scale` s:
    positive. Returns [B], in nats.
    """
    own = torch.zeros_like(logits).scatter(-1, targets[:, None], margins[targets][:, None])
    return weighted_cross_entropy(scale * (logits - own), targets, weights)


class Ldam(Criterion):
    """`loss.name=ldam`: cross-entropy with a margin that is the larger the rarer the class, classes weighted later on.

    The weights are those of `weighted_ce`, from the share `drw_from` of the epochs on. They change in place: a compiled
    criterion is not compiled again.
    """

    takes_soft_targets = False
    margins: Tensor
    weights: Tensor
    late_weights: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        epochs: int,
        ldam_margin: float = 0.5,
        ldam_scale: float = 1.0,
        drw_from: float = 0.8,
        weight_beta: float = 0.9999,
    ) -> None:
        super().__init__()
        counts = counts_of_all_classes(class_counts, "ldam")
        self.scale, self.first_weighted = ldam_scale, drw_from * epochs
        # They follow from data set, configuration and epoch: checkpoints do not hold them.
        self.register_buffer("margins", class_margins(counts, ldam_margin).float(), persistent=False)
        self.register_buffer("late_weights", class_weights(counts, weight_beta).float(), persistent=False)
        self.register_buffer("weights", torch.ones(len(counts)), persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._weighted = epoch >= self.first_weighted
        if self._weighted:
            self.weights.copy_(self.late_weights)
        else:
            self.weights.fill_(1.0)

    def scalars(self) -> dict[str, float]:
        return {"class_weighting": float(self._weighted)}

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        margins, weights = self.margins.to(logits.dtype), self.weights.to(logits.dtype)
        return ldam(logits, targets, margins, self.scale, weights)
