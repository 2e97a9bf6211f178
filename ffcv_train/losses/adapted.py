"""Any loss as a criterion of the trainer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ffcv_train.losses.base import Criterion


class Adapted(Criterion):
    """`loss(logits, targets)`, a module or a function such as `torch.nn.CrossEntropyLoss()`, as a criterion.

    It receives logits, float32 [B, K], outside of autocast, and targets, int64 [B], or probabilities [B, K] under
    Mixup and CutMix, and returns the mean loss of the batch, 0-d. Raises `ValueError` where it has parameters, which no
    optimizer would see, or returns another shape.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
            raise ValueError(
                f"criterion {type(loss).__name__} has parameters of its own, which the optimizer does not see; make "
                "them part of the model, or freeze them"
            )
        self.loss = loss

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            value = self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
        if not isinstance(value, Tensor) or value.ndim:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"criterion must return the mean loss of the batch, a tensor without axes, not {shape}")
        return value
