"""What every criterion shares: the interface to the trainer, float32, and the α schedule."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ffcv_train.system.distributed import all_reduce_sum
from ffcv_train.system.errors import UserError


class Criterion(nn.Module):
    """A training loss; a subclass says in `per_sample` what one sample costs.

    Constructor arguments are names of `LossConfig` fields, `num_classes`, `epochs` or `class_counts`;
    `create_criterion` passes those that a constructor names. State that must survive a restart belongs in persistent
    buffers.
    """

    rank_sums: ClassVar[tuple[str, ...]] = ()
    """Names of the persistent buffers in which each rank adds up its own samples"""

    takes_soft_targets: ClassVar[bool] = True
    """Whether targets may be probabilities (Mixup, CutMix)"""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, 0-d, float32 (float64 for float64 logits).

        `logits`: [B, K], any floating type; computed in at least float32, also under autocast. `targets`: class
        indices, int64 [B], each in [0, K) (not checked here, for that would wait for the device), or
        probabilities, floating [B, K], rows summing to 1. Raises `ValueError` on other shapes or types, and on
        probabilities where `takes_soft_targets` is false.
        """
        _check_shapes(logits, targets)
        if targets.is_floating_point() and not self.takes_soft_targets:
            raise ValueError(
                f"{type(self).__name__} is not defined for targets that are probabilities (Mixup, CutMix); "
                f"train it with class indices, or choose another criterion"
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if targets.is_floating_point():
                targets = targets.to(logits.dtype)
            return self.per_sample(logits, targets).mean()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses [B] of `logits` [B, K] (float32 or float64) and `targets` (int64 [B], or [B, K] in logits' type)."""
        raise NotImplementedError

    def attach(self, model: nn.Module, side: int) -> None:
        """Called once, before training, with the bare model: a criterion that reads more than logits hooks itself in.

        `side` is that of the first epoch's images in pixels. Raises `UserError` where the model lacks what is needed.
        """

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of epoch `epoch` (from 0), also when a run is resumed within it."""

    def end_epoch(self) -> None:
        """Called after the last step of an epoch on every rank; statistics are reduced over the ranks here."""

    def state_of_all_ranks(self) -> dict[str, Tensor]:
        """The state dict of a run of one process that had seen all ranks' samples; called on every rank."""
        state = self.state_dict()
        return state | {name: all_reduce_sum(state[name].clone()) for name in self.rank_sums}

    def load_state_of_all_ranks(self, state: Mapping[str, Tensor], rank: int) -> None:
        """Continue from `state_of_all_ranks`, at any number of ranks: rank 0 takes the sums, the others begin at 0."""
        self.load_state_dict(state)
        if rank:
            for name in self.rank_sums:
                self.get_buffer(name).zero_()

    def scalars(self) -> dict[str, float]:
        """What the log shows of the criterion, by name; costs no wait for the device."""
        return {}


class AlphaCriterion(Criterion):
    """A criterion whose penalty has the weight α, linear in the epoch from `alpha_start` to `alpha_end` (see `alpha`).

    α is a 0-d float32 buffer that `start_epoch` changes in place: a compiled criterion is not compiled again, and
    nothing waits for the device. It follows from configuration and epoch, so checkpoints do not hold it. Until
    `start_epoch` is called it is `alpha_start`. The defaults are the paper's, whose main recipe has 200 epochs.
    """

    alpha: Tensor

    def __init__(
        self, alpha_start: float = 0.1, alpha_end: float = 0.2, epochs: int = 200, alpha_schedule: str = "approach"
    ) -> None:
        super().__init__()
        self.alpha_start, self.alpha_end, self.epochs = alpha_start, alpha_end, epochs
        self.alpha_schedule = alpha_schedule
        self.register_buffer("alpha", torch.tensor(0.0), persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._alpha_on_host = alpha(self.alpha_start, self.alpha_end, self.epochs, epoch, self.alpha_schedule)
        self.alpha.fill_(self._alpha_on_host)

    def scalars(self) -> dict[str, float]:
        return {"alpha": self._alpha_on_host}


def counts_of_all_classes(class_counts: Sequence[int], name: str) -> Tensor:
    """Training samples of each class, float64 [K]. Raises `UserError` where the criterion `name` meets a class of none.

    >>> counts_of_all_classes([500, 5], "ldam")
    tensor([500.,   5.], dtype=torch.float64)
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not bool((counts > 0).all()):
        empty = int((counts <= 0).nonzero()[0])
        raise UserError(
            f"loss.name={name} takes each class's frequency from the training set, which has no sample of label "
            f"{empty}; train on samples of every class, or choose another criterion"
        )
    return counts


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating [batch, classes], not {logits.dtype} {tuple(logits.shape)}")
    soft = targets.is_floating_point()
    if targets.shape != (logits.shape if soft else logits.shape[:1]) or not (soft or targets.dtype == torch.int64):
        raise ValueError(
            f"targets of logits {tuple(logits.shape)} must be int64 [batch] or floating [batch, classes], "
            f"not {targets.dtype} {tuple(targets.shape)}"
        )


def alpha(start: float, end: float, epochs: int, epoch: int, schedule: str = "approach") -> float:
    """The weight of a criterion's penalty in epoch `epoch` of `epochs`, counted from 0.

    `schedule` "approach": α₀ + (α₁ − α₀) t/T (arXiv:2502.15798 and its `Conv/ffcv`), so that `end` is approached and
    not reached; "reach": α₀ + (α₁ − α₀) t/(T − 1) (its DeiT, common_resnet and long-tail code), `end` in the last
    epoch. A run of one epoch has `start` in both.
    """
    span = epochs if schedule == "approach" else max(1, epochs - 1)
    return start + (end - start) * epoch / span
