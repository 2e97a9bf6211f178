"""Zipf's label smoothing (Liang et al., arXiv:2207.12980): the other classes' probabilities follow their ranks."""

import torch
from torch import Tensor, nn

from ffcv_train.losses.base import Criterion
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.models.inspect.dense_head import DenseHead, find_dense_head
from ffcv_train.system.errors import UserError


def zipf(logits: Tensor, targets: Tensor, votes: Tensor, weight: float) -> Tensor:
    """H(y, softmax(z)) + λ KL(p ‖ q) per sample, q the softmax over the classes other than the target.

    `logits` z: [B, K], float32 or float64, K ≥ 2; `targets`: int64 [B] in [0, K); `votes`: [B, K], any number type, as
    `zipf_distribution` takes them; `weight` λ: at least 0. Returns [B], in nats. p is no function of the parameters
    for the gradient, which is λ (q − p) on the other classes and 0 on the target, plus cross-entropy's.
    """
    p = zipf_distribution(logits.detach(), targets, votes)
    others = logits.masked_fill(_is_target(logits, targets), -torch.inf).logsumexp(dim=-1)
    # Σ p log p − Σ p log q without the target's log q, which would be −∞ times 0.
    divergence = torch.xlogy(p, p).sum(dim=-1) - (p * logits).sum(dim=-1) + others
    return cross_entropy(logits, targets) + weight * divergence


def zipf_distribution(logits: Tensor, targets: Tensor, votes: Tensor) -> Tensor:
    """p [B, K], in the logits' type: 0 for the target, else (1/rank) / Σ_r (1/r), ranks 1 to K − 1.

    The class of most votes has rank 1; among classes of equally many votes, none included, the larger logit comes
    first, then the smaller index. (The authors' code gives equal votes one rank, and counts the target's.)
    """
    batch, classes = logits.shape
    target = _is_target(logits, targets)
    by_logit = logits.masked_fill(target, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    # Fewer than none: the target comes last.
    votes = votes.masked_fill(target, -1).gather(-1, by_logit)
    order = by_logit.gather(-1, votes.argsort(dim=-1, descending=True, stable=True))
    shares = 1 / torch.arange(1, classes, device=logits.device, dtype=logits.dtype)
    shares = torch.cat([shares / shares.sum(), shares.new_zeros(1)])
    return torch.zeros_like(logits).scatter_(-1, order, shares.expand(batch, classes))


def _is_target(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, targets[:, None], True)


class Zipf(Criterion):
    """`loss.name=zipf`: cross-entropy, and the other classes' probabilities as Zipf's law over their dense votes.

    A class's votes are the positions of the last feature map at which the classifier, applied there, prefers it.
    `attach` finds the map and hooks itself to it. `forward` takes the logits of the model's last pass in training mode
    and raises `RuntimeError` where there was none, or of another batch size.
    """

    takes_soft_targets = False

    def __init__(self, num_classes: int, zipf_weight: float) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"loss.name=zipf ranks the classes other than the target, and there are {num_classes}")
        self.weight = zipf_weight
        self.head: DenseHead | None = None

    def attach(self, model: nn.Module, side: int) -> None:
        head = find_dense_head(model, side)
        if head is None:
            raise UserError(
                f"loss.name=zipf needs a feature map of several positions that the classifier reads through average "
                f"pooling or a class token, and {type(model).__name__} has none at {side} x {side} pixels; choose "
                f"another model.arch (distilled ones have two classifiers), larger images or another loss.name"
            )
        head.hook()
        self.head = head

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        top = self.head.top_classes if self.head is not None else None
        if top is None or len(top) != len(logits):
            raise RuntimeError("zipf needs this batch's votes: attach(model, side), then the model in training mode")
        votes = torch.zeros_like(logits).scatter_add_(-1, top, torch.ones_like(top, dtype=logits.dtype))
        return zipf(logits, targets, votes, self.weight)
