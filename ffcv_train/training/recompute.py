"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ffcv_train.models.inspect.blocks import blocks
from ffcv_train.system.errors import UserError


def recompute_blocks(model: nn.Module, arch: str = "") -> list[str]:
    """Let every block of `model` (see `blocks`) keep its inputs alone while it trains; returns the blocks' names.

    Weights and running statistics come out as without: dropout and stochastic depth draw the same again, and BatchNorm
    counts a batch once. Raises `UserError` where the network has no blocks.
    """
    names = list(blocks(model))
    if not names:
        raise UserError(
            f"model.grad_checkpointing=1: {arch or type(model).__name__} has no blocks that could be computed again; "
            "set it to 0, and --training.accumulate saves memory"
        )
    for name in names:
        block = model.get_submodule(name)
        block.forward = _recomputed(block, block.forward)
    return names


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return contextlib.nullcontext(), _statistics_stay(block)

    def run(*inputs: Any, **more: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **more)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **more)

    return run


@contextlib.contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch's statistics and leaves the running ones as they are.

    By no share of the new ones: without the running ones it would keep other tensors than in the forward pass.
    """
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm._buffers.get("num_batches_tracked")) for norm in norms]
    for norm in norms:
        norm.momentum, norm._buffers["num_batches_tracked"] = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm._buffers["num_batches_tracked"] = momentum, count
