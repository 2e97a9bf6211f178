"""A network's last layer and the features that it reads, for networks of any make."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_train.errors import UserError


@dataclass(eq=False)
class LastLayer:
    """The linear layer whose output are the logits; its input are the penultimate features."""

    name: str
    """Its dotted name in the model"""
    module: nn.Module
    """`nn.Linear`, or a convolution of 1 × 1 over one position"""
    features: Tensor | None = None
    """float32 [B, D]: its input in the model's last pass, while `capture` lasts"""

    @property
    def weight(self) -> Tensor:
        """[K, D]; row k is the template of class k."""
        weight: Any = self.module.weight
        return weight.detach().flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """[K], or None where the layer has none."""
        bias: Any = self.module.bias
        return None if bias is None else bias.detach()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """While the context lasts, each forward pass leaves its `features`."""

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.features = inputs[0].detach().float().flatten(1)

        handle = self.module.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()
            self.features = None


def find_last_layer(model: nn.Module, side: int) -> LastLayer | None:
    """The last layer of `model` for images of `side` pixels, or None where no single linear layer gives the logits.

    Nothing is known of the architecture: two images of noise pass through the network in evaluation mode, and the
    last layer is the last one called whose output the logits are. The model and its mode stay as they are.
    """
    found: LastLayer | None = None
    outputs: list[tuple[str, nn.Module, Tensor]] = []

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # One vector per image: not a layer that is applied at every position.
        vector = isinstance(inputs[0], Tensor) and inputs[0].shape[:1] == (2,) and inputs[0][0].numel() == width(module)
        if vector and isinstance(output, Tensor):
            outputs.append((names[module], module, output.flatten(1).clone()))

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names: dict[nn.Module, str] = {module: name for name, module in layers.items()}
    handles = [module.register_forward_hook(after) for module in names]
    modes = [(module, module.training) for module in model.modules()]
    like = next(model.parameters())
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = model.eval()(noise.to(like))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    for name, module, output in outputs:
        if output.shape == logits.shape and torch.allclose(output, logits, rtol=1e-5, atol=1e-6, equal_nan=True):
            found = LastLayer(name, module)
    return found


def need_last_layer(model: nn.Module, side: int, arch: str, what: str) -> LastLayer:
    """`find_last_layer`, or a `UserError`: `what` needs it, and the architecture `arch` has none."""
    layer = find_last_layer(model, side)
    if layer is None:
        raise UserError(
            f"{what} need the input of the last linear layer, and no single linear layer of {arch} gives its logits; "
            "choose an architecture with one"
        )
    return layer


def width(layer: nn.Module) -> int:
    """The number of features that a linear layer or convolution reads at one position; 0 for grouped convolutions."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels if layer.groups == 1 and layer.kernel_size == (1, 1) else 0
    return int(layer.in_features)  # type: ignore[arg-type]
