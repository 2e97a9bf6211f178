"""Cross-entropy with classes weighted by their effective number of samples (Cui et al., arXiv:1901.05555)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_train.losses.base import Criterion, counts_of_all_classes


def class_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 − β)/(1 − β^n) of each class, scaled to a mean of 1; at β = 1 its limit, the inverse frequency 1/n.

    `counts` n: float64 [K], at least 1; `beta` in [0, 1], where 0 weights all classes alike. Returns float64 [K].
    """
    if beta == 1:
        weights = 1 / counts
    elif beta == 0:
        weights = torch.ones_like(counts)
    else:
        log_beta = torch.log(torch.tensor(beta, dtype=counts.dtype))
        weights = 1 / -torch.expm1(counts * log_beta)
    return weights / weights.mean()


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """−w_gt log q_gt per sample, q = softmax(z); −Σ_k y_k w_k log q_k for targets that are probabilities.

    `logits` z: [B, K], float32 or float64; `targets`: int64 [B], or probabilities y [B, K] of the same type; `weights`
    w: [K], same type. Returns [B], in nats. The batch's mean divides by B, as the paper's, where PyTorch's
    `CrossEntropyLoss(weight)` divides by the sum of the weights that happen to be in the batch.
    """
    return F.cross_entropy(logits, targets, weight=weights, reduction="none")


class WeightedCrossEntropy(Criterion):
    """`loss.name=weighted_ce`: cross-entropy, each class weighted by its effective number of training samples."""

    weights: Tensor

    def __init__(self, class_counts: Sequence[int], weight_beta: float = 0.9999) -> None:
        super().__init__()
        weights = class_weights(counts_of_all_classes(class_counts, "weighted_ce"), weight_beta)
        # It follows from the data set: checkpoints do not hold it.
        self.register_buffer("weights", weights.float(), persistent=False)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return weighted_cross_entropy(logits, targets, self.weights.to(logits.dtype))
