"""Label smoothing (Szegedy et al., arXiv:1512.00567) as cross-entropy plus a penalty on logits."""

from torch import Tensor

from ffcv_train.losses.base import AlphaCriterion
from ffcv_train.losses.cross_entropy import cross_entropy


def label_smoothing(logits: Tensor, targets: Tensor, alpha: Tensor | float) -> Tensor:
    """H(y, softmax(z)) + α (z_gt − mean z) per sample: cross-entropy with the targets (1 − α) y + α/K.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, for
    which z_gt becomes Σ_k y_k z_k; `alpha`: in [0, 1], a number or a 0-d tensor. Returns [B], in nats.
    The form in logits is that of arXiv:2502.15798.
    """
    penalty = target_logits(logits, targets) - logits.mean(dim=-1)
    return cross_entropy(logits, targets) + alpha * penalty


def target_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """z_gt per sample, [B]: the true class's logit, or Σ_k y_k z_k for targets that are probabilities."""
    if targets.is_floating_point():
        return (targets * logits).sum(dim=-1)
    return logits.gather(-1, targets[:, None]).squeeze(-1)


class LabelSmoothing(AlphaCriterion):
    """`loss.name=ls`: label smoothing with the α schedule."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return label_smoothing(logits, targets, self.alpha)
