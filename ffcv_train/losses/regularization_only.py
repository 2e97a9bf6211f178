"""The part of label smoothing that regularises: an ablation (arXiv:2502.15798)."""

from torch import Tensor

from ffcv_train.losses.base import AlphaCriterion
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.losses.label_smoothing import target_logits


def regularization_only(logits: Tensor, targets: Tensor, alpha: Tensor | float) -> Tensor:
    """H(y, softmax(z)) + (α/K) Σ_{z_m < z_gt} (z_gt − z_m) per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, for
    which z_gt is Σ_k y_k z_k; `alpha`: a number or a 0-d tensor. Returns [B], in nats.
    The penalty is label smoothing's over the logits below the true class; with that of `error_amplification_only` it
    sums to label smoothing's whole. A logit equal to z_gt belongs to neither and gets no gradient.
    """
    below = (target_logits(logits, targets)[:, None] - logits).relu()
    return cross_entropy(logits, targets) + alpha * below.mean(dim=-1)


class RegularizationOnly(AlphaCriterion):
    """`loss.name=regularization_only`: cross-entropy with the half of label smoothing that regularises."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return regularization_only(logits, targets, self.alpha)
