"""The classifier applied at every position of the last feature map, for networks of any make."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ffcv_train.models.inspect.trace import trace


@dataclass(eq=False)
class DenseHead:
    """Where a network's last feature map comes from, and the layers that turn one pooled vector of it into logits."""

    name: str
    """The module whose output is the map, by its dotted name"""
    module: nn.Module
    channels_first: bool
    """[B, C, H, W]; else [B, H, W, C] or [B, N, C]"""
    skipped: int
    """Leading tokens of [B, N, C] that are no positions: class token, registers"""
    layers: list[tuple[nn.Module, bool]] = field(default_factory=list)
    """Applied in this order; those marked true take [B, C, 1, 1], the others [B, C]"""
    top_classes: Tensor | None = None
    """int64 [B, P], the arg max at each position for the last batch in training mode, once hooked"""

    def logits(self, feature_map: Tensor) -> Tensor:
        """[B, P, K] of the module's output; positions in row-major order."""
        if self.channels_first:
            positions = feature_map.flatten(2).transpose(1, 2)
        else:
            positions = feature_map.flatten(1, -2)[:, self.skipped :]
        batch, count, channels = positions.shape
        x = positions.reshape(batch * count, channels)
        for layer, spatial in self.layers:
            x = layer(x[:, :, None, None] if spatial else x).flatten(1)
        return x.view(batch, count, -1)

    def hook(self) -> None:
        """From now on each forward pass in training mode leaves its `top_classes`; costs one P-fold classifier."""

        def vote(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if module.training:
                with torch.no_grad():
                    # Not argmax, which takes five times as long on a CPU in bf16.
                    self.top_classes = self.logits(output).max(dim=-1).indices

        self.module.register_forward_hook(vote)


class _Step(NamedTuple):
    """A layer that made one vector per image of another."""

    layer: nn.Module
    spatial: bool
    before: Tensor
    after: Tensor


class _Map(NamedTuple):
    """A module's output with positions, and a vector [B, C] that a classifier may read of it."""

    name: str
    module: nn.Module
    channels_first: bool
    skipped: int
    pooled: Tensor


def find_dense_head(model: nn.Module, side: int) -> DenseHead | None:
    """The dense head of `model` for images of `side` pixels, or None where it cannot be told.

    Nothing is known of the architecture: two images of noise pass through the network in evaluation mode, and from
    the logits the vectors are followed back, layer by layer, to one that is the average or the class token of some
    module's output. So every layer between pooling and logits must be a module, those with running statistics
    excepted. The model, its mode and the global random state stay as they are.
    """
    steps, maps, logits = _watch(model, side)
    calls = Counter(id(candidate.module) for candidate in maps)
    vector, end = logits, len(steps)
    layers: list[tuple[nn.Module, bool]] = []
    while True:
        matches = [candidate for candidate in maps if _same(candidate.pooled, vector)]
        if matches:
            # A container rather than the layer within it that serves several times.
            found = min(reversed(matches), key=lambda candidate: calls[id(candidate.module)])
            return DenseHead(found.name, found.module, found.channels_first, found.skipped, layers)
        reached = (i for i in reversed(range(end)) if _same(steps[i].after, vector) and not _same_step(steps[i]))
        end = next(reached, -1)
        if end < 0 or isinstance(steps[end].layer, nn.modules.batchnorm._NormBase):
            return None
        layers.insert(0, (steps[end].layer, steps[end].spatial))
        vector = steps[end].before


def _watch(model: nn.Module, side: int) -> tuple[list[_Step], list[_Map], Tensor]:
    """What a forward pass of two images of noise shows: vector layers and maps in order, and the logits."""
    steps: list[_Step] = []
    maps: list[_Map] = []
    inputs: dict[int, Tensor] = {}
    prefix = int(getattr(model, "num_prefix_tokens", 1))

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # A copy, for the layer may work in place.
        if module in leaves and len(arguments) == 1 and _is_vector(arguments[0]):
            inputs[id(module)] = arguments[0].clone()

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        start = inputs.pop(id(module), None)
        if start is not None and _is_vector(output):
            steps.append(_Step(module, start.ndim == 4, start.flatten(1), output.flatten(1).clone()))
        elif isinstance(output, Tensor) and output.ndim in (3, 4) and len(output) == 2:
            maps.extend(_Map(names[module], module, *reading) for reading in _readings(output, prefix))

    names = {module: name for name, module in model.named_modules()}
    leaves = {module for module in names if next(module.children(), None) is None}
    logits = trace(model, side, names, after, before)
    return steps, maps, logits


def _readings(output: Tensor, prefix: int) -> Iterator[tuple[bool, int, Tensor]]:
    """(channels first, skipped tokens, pooled vector) for each way in which a classifier may read a map."""
    if output.ndim == 4 and output[0, 0].numel() > 1:
        yield True, 0, output.mean(dim=(2, 3))
    tokens = output.flatten(1, -2)
    if tokens.shape[1] > 1:
        yield False, 0, tokens.mean(dim=1)
    if output.ndim == 3 and tokens.shape[1] > prefix:
        yield False, prefix, tokens[:, prefix:].mean(dim=1)
        yield False, prefix, tokens[:, 0].clone()


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (2,) and (value.ndim == 2 or value.shape[2:] == (1, 1))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def _same_step(step: _Step) -> bool:
    """Dropout, flattening and the like."""
    return _same(step.before, step.after)
