"""The blocks that a network is a sequence of."""

from collections.abc import Iterator

from torch import nn


def blocks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the entries of sequences; an entry that is itself a plain sequence of blocks is opened."""
    plain = (nn.Sequential, nn.ModuleList)
    for name, child in module.named_children():
        holds_blocks = type(child) in plain and any(list(entry.children()) for entry in child.children())
        if isinstance(module, plain) and not holds_blocks:
            if list(child.parameters()):
                yield f"{prefix}{name}"
        else:
            yield from blocks(child, f"{prefix}{name}.")
