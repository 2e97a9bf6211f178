"""Focal loss (Lin et al., arXiv:1708.02002) over a softmax: samples that are nearly right count less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_train.losses.base import Criterion


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """−(1 − q_gt)^γ log q_gt per sample, q = softmax(z).

    `logits` z: [B, K], float32 or float64; `targets`: int64 [B], or probabilities y [B, K] of the same type, for which
    the loss is −Σ_k y_k (1 − q_k)^γ log q_k; `gamma`: at least 0, where 0 is cross-entropy. Returns [B], in nats.
    """
    log_q = F.log_softmax(logits, dim=-1)
    if not targets.is_floating_point():
        log_q = log_q.gather(-1, targets[:, None])
        targets = torch.ones_like(log_q)
    # 1 − q without cancellation; at exactly 0 the power's gradient would be infinite for γ < 1.
    others = (-torch.expm1(log_q)).clamp_min(torch.finfo(log_q.dtype).tiny)
    return -(targets * others**gamma * log_q).sum(dim=-1)


class Focal(Criterion):
    """`loss.name=focal`: cross-entropy in which the weight (1 − q_gt)^`focal_gamma` makes easy samples count less."""

    def __init__(self, focal_gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = focal_gamma

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal(logits, targets, self.gamma)
