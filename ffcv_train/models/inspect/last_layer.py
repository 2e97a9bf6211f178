"""A network's last layer and the features that it reads, for networks of any make."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_train.models.inspect.trace import trace
from ffcv_train.system.errors import UserError


class LastLayer:
    """The linear map whose output are the logits; its input are the penultimate features.

    Mostly one layer. Where the logits are the mean of several layers' outputs, as with DeiT's distillation head, the
    features are the layers' inputs one after the other, and the weights theirs side by side over the number of layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        """`layers` by name: `nn.Linear`s, or convolutions of 1 × 1 over one position."""
        self.name = " + ".join(layers)
        self._layers: list[Any] = list(layers.values())
        self._inputs: list[Tensor | None] = [None] * len(self._layers)

    @property
    def features(self) -> Tensor | None:
        """float32 [B, D]: what it read in the model's last pass, while `capture` lasts."""
        inputs = [kept for kept in self._inputs if kept is not None]
        return torch.cat(inputs, dim=1) if len(inputs) == len(self._layers) else None

    @property
    def weight(self) -> Tensor:
        """[K, D]; row k is the template of class k."""
        return torch.cat([layer.weight.detach().flatten(1) for layer in self._layers], dim=1) / len(self._layers)

    @property
    def bias(self) -> Tensor | None:
        """[K], or None where there is none."""
        found = [layer.bias.detach() for layer in self._layers if layer.bias is not None]
        return torch.stack(found).sum(dim=0) / len(self._layers) if found else None

    @torch.no_grad()
    def normalise(self, tau: float) -> None:
        """Divide each class's weights by their norm to the power `tau`, and drop the bias, in place.

        Kang et al., arXiv:1910.09217: 0 leaves the weights alone, 1 gives all classes the same norm. A class whose
        weights are 0 keeps them.
        """
        for layer in self._layers:
            norms = layer.weight.flatten(1).norm(dim=1)
            scale = torch.where(norms > 0, norms, 1.0).pow(-tau)
            layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias.zero_()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """While the context lasts, each forward pass leaves its `features`."""

        def keep(position: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inputs[position] = inputs[0].detach().float().flatten(1)

        handles = [layer.register_forward_pre_hook(partial(keep, i)) for i, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._inputs = [None] * len(self._layers)


def find_last_layer(model: nn.Module, side: int) -> LastLayer | None:
    """The last layer of `model` for images of `side` pixels, or None where no linear layer gives the logits.

    Nothing is known of the architecture: two images of noise pass through the network in evaluation mode, and the
    last layer is the last one called whose output the logits are, or the last two whose mean they are. The model and
    its mode stay as they are.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # One vector per image: not a layer that is applied at every position.
        vector = isinstance(inputs[0], Tensor) and inputs[0].shape[:1] == (2,) and inputs[0][0].numel() == width(module)
        if vector and isinstance(output, Tensor):
            outputs.append((module, output.flatten(1).clone()))

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names: dict[nn.Module, str] = {module: name for name, module in layers.items()}
    logits = trace(model, side, names, after)
    fitting = [(module, output) for module, output in outputs if output.shape == logits.shape]
    for count in (1, 2):
        for chosen in reversed(list(combinations(fitting, count))):
            mean = torch.stack([output for _, output in chosen]).mean(dim=0)
            if torch.allclose(mean, logits, rtol=1e-5, atol=1e-6, equal_nan=True):
                return LastLayer({names[module]: module for module, _ in chosen})
    return None


def need_last_layer(model: nn.Module, side: int, arch: str, what: str) -> LastLayer:
    """`find_last_layer`, or a `UserError`: `what` needs it, and the architecture `arch` has none."""
    layer = find_last_layer(model, side)
    if layer is None:
        raise UserError(
            f"{what} need the input of the last linear layer, and no linear layer of {arch} gives its logits; "
            "choose an architecture with one"
        )
    return layer


def width(layer: nn.Module) -> int:
    """The number of features that a linear layer or convolution reads at one position; 0 for grouped convolutions."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels if layer.groups == 1 and layer.kernel_size == (1, 1) else 0
    return int(layer.in_features)  # type: ignore[arg-type]
