"""Looking into a network without changing it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Before = Callable[[nn.Module, tuple[Any, ...]], None]
"""Called with a module and its positional arguments"""
After = Callable[[nn.Module, tuple[Any, ...], Any], None]
"""Called with a module, its positional arguments and its output"""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` while the context lasts; then every submodule gets its own earlier mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def trace(
    model: nn.Module,
    side: int,
    modules: Iterable[nn.Module],
    after: After,
    before: Before | None = None,
    *,
    gradients: bool = False,
) -> Tensor:
    """The logits [2, K] of two images of noise of `side` pixels, while `before` and `after` watch each of `modules`.

    The pass is one in evaluation mode. With `gradients` outputs are differentiable, with respect to the images where
    no parameter is; otherwise nothing is recorded. Model, mode, hooks and the global random state stay as they are.
    """
    like = next(model.parameters())
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like)
    with ExitStack() as stack:
        for module in modules:
            if before is not None:
                stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.set_grad_enabled(gradients))
        return model(noise.requires_grad_(gradients))
