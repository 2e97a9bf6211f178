"""What every criterion shares: the interface to the trainer, float32, and the α schedule."""

import torch
from torch import Tensor, nn

from ffcv_train import schedules


class Criterion(nn.Module):
    """A training loss; a subclass says in `per_sample` what one sample costs.

    Constructor arguments are names of `LossConfig` fields, `num_classes` or `epochs`; `create_criterion` passes
    those that a constructor names. State that must survive a restart belongs in persistent buffers.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, 0-d, float32 (float64 for float64 logits).

        `logits`: [B, K], any floating type; computed in at least float32, also under autocast. `targets`: class
        indices, int64 [B], each in [0, K) (not checked here, for that would wait for the device), or
        probabilities, floating [B, K], rows summing to 1. Raises `ValueError` on other shapes or types.
        """
        _check_shapes(logits, targets)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if targets.is_floating_point():
                targets = targets.to(logits.dtype)
            return self.per_sample(logits, targets).mean()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses [B] of `logits` [B, K] (float32 or float64) and `targets` (int64 [B], or [B, K] in logits' type)."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of epoch `epoch` (from 0), also when a run is resumed within it."""

    def end_epoch(self) -> None:
        """Called after the last step of an epoch on every rank; statistics are reduced over the ranks here."""

    def scalars(self) -> dict[str, float]:
        """What the log shows of the criterion, by name; costs no wait for the device."""
        return {}


class AlphaCriterion(Criterion):
    """A criterion whose penalty has the weight α, linear in the epoch from `alpha_start` to `alpha_end`.

    α is a 0-d float32 buffer that `start_epoch` changes in place: a compiled criterion is not compiled again, and
    nothing waits for the device. It follows from configuration and epoch, so checkpoints do not hold it.
    """

    alpha: Tensor

    def __init__(self, alpha_start: float, alpha_end: float, epochs: int) -> None:
        super().__init__()
        self.alpha_start, self.alpha_end, self.epochs = alpha_start, alpha_end, epochs
        self.register_buffer("alpha", torch.tensor(0.0), persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._alpha_on_host = schedules.alpha(self.alpha_start, self.alpha_end, self.epochs, epoch)
        self.alpha.fill_(self._alpha_on_host)

    def scalars(self) -> dict[str, float]:
        return {"alpha": self._alpha_on_host}


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating [batch, classes], not {logits.dtype} {tuple(logits.shape)}")
    soft = targets.is_floating_point()
    if targets.shape != (logits.shape if soft else logits.shape[:1]) or not (soft or targets.dtype == torch.int64):
        raise ValueError(
            f"targets of logits {tuple(logits.shape)} must be int64 [batch] or floating [batch, classes], "
            f"not {targets.dtype} {tuple(targets.shape)}"
        )
