"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn

from ffcv_train.system.errors import UserError


class WeightAverage:
    """`module`, a copy of `model` whose weights and running statistics follow it: a ← decay · a + (1 − decay) · w.

    The first update copies. Counters (integer buffers) are copied by `copy_counters`. As
    `torch.optim.swa_utils.AveragedModel` with `use_buffers`, whose update makes the host wait for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.updates = 0
        self._decay = decay
        averaged, sources = ([*m.parameters(), *m.buffers()] for m in (self.module, model))
        pairs = list(zip(averaged, sources, strict=True))
        self._averaged = [a.detach() for a, _ in pairs if a.is_floating_point()]
        self._sources = [s.detach() for _, s in pairs if s.is_floating_point()]
        self._counters = [(a, s) for a, s in pairs if not a.is_floating_point()]

    def update(self) -> None:
        """Take one step towards the model's present weights, which must still be the tensors it was made with."""
        if self.updates:
            torch._foreach_lerp_(self._averaged, self._sources, 1 - self._decay)
        else:
            torch._foreach_copy_(self._averaged, self._sources)
        self.updates += 1

    def copy_counters(self) -> None:
        """Copy the integer buffers."""
        for averaged, source in self._counters:
            averaged.copy_(source)


def check_decay(decay: float, steps: int) -> None:
    """Raise `UserError` where, after `steps`, the average would mostly be the first step's weights."""
    if decay and decay ** (steps - 1) > 0.5:
        raise UserError(
            f"training.ema_decay={decay:g} averages weights over about {1 / (1 - decay):,.0f} steps, and this run has "
            f"{steps:,}: the average, by which best.pt and evaluation go, would stay near the first; lower it to "
            f"{max(0.0, 1 - 5 / steps):.4g} or less, or set it to 0"
        )
