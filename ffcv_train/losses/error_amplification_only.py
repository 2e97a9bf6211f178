"""The part of label smoothing that amplifies errors: an ablation (arXiv:2502.15798)."""

from torch import Tensor

from ffcv_train.losses.base import AlphaCriterion
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.losses.label_smoothing import target_logits


def error_amplification_only(logits: Tensor, targets: Tensor, alpha: Tensor | float) -> Tensor:
    """H(y, softmax(z)) + (α/K) Σ_{z_n > z_gt} (z_gt − z_n) per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, for
    which z_gt is Σ_k y_k z_k; `alpha`: a number or a 0-d tensor. Returns [B], in nats.
    The second term is 0 or negative: it rewards logits above that of the true class, and is 0 where the top class is
    the true one. With that of `regularization_only` it sums to label smoothing's penalty.
    """
    above = (logits - target_logits(logits, targets)[:, None]).relu()
    return cross_entropy(logits, targets) - alpha * above.mean(dim=-1)


class ErrorAmplificationOnly(AlphaCriterion):
    """`loss.name=error_amplification_only`: cross-entropy with the half of label smoothing that amplifies errors."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return error_amplification_only(logits, targets, self.alpha)
