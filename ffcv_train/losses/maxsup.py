"""Max suppression (arXiv:2502.15798): label smoothing's penalty moved from the true class to the top-1 logit."""

from torch import Tensor

from ffcv_train.losses.base import AlphaCriterion
from ffcv_train.losses.cross_entropy import cross_entropy


def maxsup(logits: Tensor, targets: Tensor, alpha: Tensor | float) -> Tensor:
    """H(y, softmax(z)) + α (max z − mean z) per sample.

    `logits` z: [B, K], float32 or float64; `targets` y: int64 [B], or probabilities [B, K] of the same type, which
    only H sees; `alpha`: a number or a 0-d tensor. Returns [B], in nats.
    The penalty's gradient is α (1 − 1/K) on the arg max and −α/K elsewhere. Among logits that tie for the maximum
    (bf16 logits often do) exactly one is the arg max, the one that `torch.max` names.
    """
    # Not amax: its gradient is spread evenly over ties.
    top_logit = logits.max(dim=-1).values
    return cross_entropy(logits, targets) + alpha * (top_logit - logits.mean(dim=-1))


class MaxSup(AlphaCriterion):
    """`loss.name=maxsup`: max suppression, cross-entropy + α (max z − mean z), averaged over the batch.

    In a loop of your own, call `start_epoch(epoch)` at the start of each epoch: α grows linearly from `alpha_start` to
    `alpha_end` over `epochs`. Without it, α stays `alpha_start`.

    >>> import torch
    >>> criterion = MaxSup(epochs=90)
    >>> criterion(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]))
    tensor(0.5076)
    >>> criterion.start_epoch(45)
    >>> criterion.scalars()
    {'alpha': 0.15000000000000002}
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return maxsup(logits, targets, self.alpha)
