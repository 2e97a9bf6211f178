"""A network's last spatial features, as Grad-CAM wants them, for networks of any make."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ffcv_train.models.inspect.trace import trace
from ffcv_train.system.errors import UserError

_MOST_PREFIX_TOKENS = 16  # class token, distillation token, registers
_NOT_FEATURES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(eq=False)
class FeatureMap:
    """A module whose output holds a vector per position of a grid over the image."""

    name: str
    """Its dotted name in the model"""
    module: nn.Module
    layout: Literal["nchw", "nhwc", "tokens"]
    """How the output is laid out: [B, C, h, w], [B, h, w, C], or [B, prefix + h·w, C]"""
    grid: tuple[int, int]
    """(h, w)"""
    prefix: int = 0
    """Tokens in front of those of the grid: class token, distillation token, registers"""

    def to_map(self, output: Tensor) -> Tensor:
        """The module's output as [B, C, h, w], without prefix tokens."""
        if self.layout == "nchw":
            return output
        if self.layout == "nhwc":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)

    def from_map(self, features: Tensor, output: Tensor) -> Tensor:
        """`output` with the positions of the grid replaced by `features` [B, C, h, w]."""
        if self.layout == "nchw":
            return features
        if self.layout == "nhwc":
            return features.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], features.flatten(2).transpose(1, 2)], dim=1)

    @contextmanager
    def probe(self) -> Iterator[nn.Module]:
        """While the context lasts, the features pass through the yielded module as [B, C, h, w], unchanged."""
        probe = nn.Identity()

        def reroute(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return self.from_map(probe(self.to_map(output)), output)

        handle = self.module.register_forward_hook(reroute)
        try:
            yield probe
        finally:
            handle.remove()


def find_feature_map(model: nn.Module, side: int) -> FeatureMap | None:
    """The last spatial features of `model` for images of `side` pixels, or None where there are none.

    Nothing is known of the architecture: two images of noise pass through the network in evaluation mode. Of the
    modules that are called once, the last counts whose output is a map of more than one position before global
    pooling, or, in a transformer, a norm's tokens, and whose positions reach the logits. So a ResNet gives its last
    block. A transformer that reads its class token alone gives the first norm of its last block: behind it, the other
    tokens reach no logit, and Grad-CAM of the final norm would be 0 everywhere. Model and mode stay as they are.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.shape[:1] == (2,) and output.requires_grad:
            outputs.append((module, output))

    names = {module: name for name, module in model.named_modules() if name}
    logits = trace(model, side, names, after, gradients=True)
    found = _candidates(outputs, names, side)
    if not found:
        return None
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            logits.square().sum(), [output for _, output in found], allow_unused=True, materialize_grads=True
        )
    for (candidate, _), gradient in zip(reversed(found), reversed(gradients), strict=True):
        reaching = candidate.to_map(gradient).abs().amax(dim=(0, 1)) > 0
        if bool(reaching.any()):
            return candidate
    return None


def need_feature_map(model: nn.Module, side: int, arch: str) -> FeatureMap:
    """`find_feature_map`, or a `UserError` that names the architecture `arch`."""
    found = find_feature_map(model, side)
    if found is None:
        raise UserError(
            f"no feature map of {arch} has more than one position at {side} pixels and reaches the logits; choose "
            "another architecture, or larger images with --validation.resolution"
        )
    return found


def _candidates(
    outputs: list[tuple[nn.Module, Tensor]], names: dict[nn.Module, str], side: int
) -> list[tuple[FeatureMap, Tensor]]:
    """What may be spatial features, in the order of the pass."""
    called = [module for module, _ in outputs]
    found: list[tuple[FeatureMap, Tensor]] = []
    smallest = side
    for module, output in outputs:
        layout = _layout(output)
        if layout is None or isinstance(module, _NOT_FEATURES):
            continue
        if layout == "tokens":
            if called.count(module) > 1 or "norm" not in type(module).__name__.lower():
                continue
            grid = next((g for g in _grids(found) if 0 <= output.shape[1] - g * g <= _MOST_PREFIX_TOKENS), None)
            if grid is None:
                continue
            prefix = output.shape[1] - grid * grid
            found.append((FeatureMap(names[module], module, layout, (grid, grid), prefix), output))
            continue
        size = output.shape[2] if layout == "nchw" else output.shape[1]
        # Maps only get smaller: what grows is an attention's matrix, or pooling to a fixed size.
        if 1 < size <= smallest and called.count(module) == 1:
            smallest = size
            found.append((FeatureMap(names[module], module, layout, (size, size)), output))
    return found


def _layout(output: Tensor) -> Literal["nchw", "nhwc", "tokens"] | None:
    if output.ndim == 3:
        return "tokens"
    if output.ndim != 4:
        return None
    # Images are square, and so are their maps.
    if output.shape[2] == output.shape[3]:
        return "nchw"
    return "nhwc" if output.shape[1] == output.shape[2] else None


def _grids(found: list[tuple[FeatureMap, Tensor]]) -> list[int]:
    return [candidate.grid[0] for candidate, _ in reversed(found)]
