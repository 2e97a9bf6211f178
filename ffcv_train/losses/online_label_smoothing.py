"""Online label smoothing (Zhang et al., arXiv:2011.12562): soft targets from the last epoch's right predictions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_train.losses.base import Criterion
from ffcv_train.system.distributed import all_reduce_sum

INITIAL_SMOOTHING = 0.1


def online_label_smoothing(
    logits: Tensor, targets: Tensor, rows: Tensor, hard_weight: float, soft_weight: float
) -> Tensor:
    """w_h H(y, softmax(z)) + w_s H(S[gt], softmax(z)) per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, for
    which S[gt] becomes Σ_k y_k S[k]; `rows` S: [K, K], same type, each row a distribution over the classes;
    `hard_weight` w_h, `soft_weight` w_s: at least 0. Returns [B], in nats.
    """
    log_q = F.log_softmax(logits, dim=-1)
    if targets.is_floating_point():
        # A run may let its network's float32 products be TF32, of 10 bits, and autocast make them bf16: not in float64.
        mean_rows = (targets.double() @ rows.double()).to(rows.dtype)
        wanted = hard_weight * targets + soft_weight * mean_rows
        return -(wanted * log_q).sum(dim=-1)
    hard = log_q.gather(-1, targets[:, None]).squeeze(-1)
    return -hard_weight * hard - soft_weight * (rows[targets] * log_q).sum(dim=-1)


def predictions_and_their_weights(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class of each sample, int64 [B], and how right it is, [B] in the logits' type.

    1 or 0 for class indices; the probability that the target gives to the predicted class for soft targets.
    """
    predicted = logits.argmax(dim=-1)
    if targets.is_floating_point():
        return predicted, targets.gather(-1, predicted[:, None]).squeeze(-1)
    return predicted, (predicted == targets).to(logits.dtype)


class OnlineLabelSmoothing(Criterion):
    """`loss.name=ols`: cross-entropy with the target and with the mean prediction of its class in the last epoch.

    `rows` S [K, K] holds for each class the mean softmax output of last epoch's samples that were predicted as that
    class, rightly; `end_epoch` replaces them, and a class without a right prediction keeps its row. In the first epoch
    they are those of label smoothing with 0.1. Per device the state is 2 K² numbers of float32 (8 MB for 1000
    classes, 3.8 GB for 21 841), and so much is added to checkpoints that can be resumed.
    """

    rank_sums = ("sums",)
    rows: Tensor
    sums: Tensor

    def __init__(self, num_classes: int, hard_weight: float, soft_weight: float) -> None:
        super().__init__()
        self.hard_weight, self.soft_weight = hard_weight, soft_weight
        rows = torch.full((num_classes, num_classes), INITIAL_SMOOTHING / num_classes)
        rows.diagonal().add_(1 - INITIAL_SMOOTHING)
        self.register_buffer("rows", rows)
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self._collect(logits.detach(), targets)
        return online_label_smoothing(logits, targets, self.rows.to(logits.dtype), self.hard_weight, self.soft_weight)

    def end_epoch(self) -> None:
        sums = all_reduce_sum(self.sums)
        # A softmax sums to 1: the sum of a row is the number of samples in it.
        counts = sums.sum(dim=-1, keepdim=True)
        self.rows.copy_(torch.where(counts > 0, sums / counts.clamp_min(torch.finfo(sums.dtype).tiny), self.rows))
        sums.zero_()

    def _collect(self, logits: Tensor, targets: Tensor) -> None:
        predicted, weights = predictions_and_their_weights(logits, targets)
        shares = weights[:, None] * logits.softmax(dim=-1)
        self.sums.index_add_(0, predicted, shares.to(self.sums.dtype))
