"""Cross-entropy."""

import torch.nn.functional as F
from torch import Tensor

from ffcv_train.losses.base import Criterion


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """H(y, softmax(z)) per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B] in [0, K), or probabilities [B, K] of the same
    type. Returns [B], in nats.
    """
    return F.cross_entropy(logits, targets, reduction="none")


class CrossEntropy(Criterion):
    """`loss.name=ce`: cross-entropy, nothing else."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets)
