"""Balanced softmax (Ren et al., arXiv:2007.10740): cross-entropy whose softmax knows how often each class is seen."""

from collections.abc import Sequence

from torch import Tensor

from ffcv_train.losses.base import Criterion, counts_of_all_classes
from ffcv_train.losses.cross_entropy import cross_entropy


def balanced_softmax(logits: Tensor, targets: Tensor, log_priors: Tensor) -> Tensor:
    """H(y, softmax(z + log π)) per sample, π the share of each class in training.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type;
    `log_priors`: [K], same type, finite. Returns [B], in nats. Plain softmax of z, as evaluation takes it, is then
    the posterior under equally frequent classes.
    """
    return cross_entropy(logits + log_priors, targets)


class BalancedSoftmax(Criterion):
    """`loss.name=balanced_softmax`: cross-entropy of logits shifted by the log of each class's share in training."""

    log_priors: Tensor

    def __init__(self, class_counts: Sequence[int]) -> None:
        super().__init__()
        counts = counts_of_all_classes(class_counts, "balanced_softmax")
        # It follows from the data set: checkpoints do not hold it.
        self.register_buffer("log_priors", (counts / counts.sum()).log().float(), persistent=False)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return balanced_softmax(logits, targets, self.log_priors.to(logits.dtype))
