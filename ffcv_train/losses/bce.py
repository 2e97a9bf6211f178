"""Binary cross-entropy, each class a question of its own (Wightman et al., arXiv:2110.00476; DeiT III)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_train.losses.base import Criterion


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, threshold: float, sum_classes: bool
) -> Tensor:
    """Σ_k −[t_k log σ(z_k) + (1 − t_k) log(1 − σ(z_k))], or its mean over the classes, per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type. t is
    (1 − ε) y + ε/K with the `smoothing` ε; with a `threshold` above 0, it is 1 where that exceeds it and 0 elsewhere.
    Returns [B], in nats. Options and values are those of timm's `BinaryCrossEntropy`.
    """
    if not targets.is_floating_point():
        targets = torch.zeros_like(logits).scatter(-1, targets[:, None], 1.0)
    wanted = (1 - smoothing) * targets + smoothing / logits.shape[-1]
    if threshold > 0:
        wanted = (wanted > threshold).to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return terms.sum(dim=-1) if sum_classes else terms.mean(dim=-1)


class BinaryCrossEntropy(Criterion):
    """`loss.name=bce`: a sigmoid per class, as timm's `--bce-loss`."""

    def __init__(self, bce_smoothing: float = 0.0, bce_threshold: float = 0.0, bce_sum_classes: bool = False) -> None:
        super().__init__()
        self.smoothing, self.threshold, self.sum_classes = bce_smoothing, bce_threshold, bce_sum_classes

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, targets, self.smoothing, self.threshold, self.sum_classes)
