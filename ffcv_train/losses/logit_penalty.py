"""Logit penalty (Kornblith et al., arXiv:2010.16402): cross-entropy plus the squared norm of the logits."""

from torch import Tensor

from ffcv_train.losses.base import Criterion
from ffcv_train.losses.cross_entropy import cross_entropy


def logit_penalty(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """H(y, softmax(z)) + (β/2) ‖z‖² per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, which
    only H sees; `beta`: at least 0. Returns [B], in nats. The penalty's gradient is β z; unlike the other criteria
    this one changes when a constant is added to all logits.
    """
    return cross_entropy(logits, targets) + 0.5 * beta * logits.square().sum(dim=-1)


class LogitPenalty(Criterion):
    """`loss.name=logit_penalty`: cross-entropy with `beta` of the logits' squared norm."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logit_penalty(logits, targets, self.beta)
