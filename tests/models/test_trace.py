"""The probing pass: what it shows, and that the network stays as it was, also where the pass fails."""

import pytest
import torch
from torch import Tensor, nn

from ffcv_train.models.inspect.trace import trace


class Network(nn.Module):
    """Small, with all that a pass could change: running statistics, dropout, and a layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.body(x)).mean(dim=(2, 3)))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    return hooks, [m.training for m in model.modules()], torch.random.get_rng_state().tolist(), tensors


def assert_same(before: tuple[object, ...], after: tuple[object, ...]) -> None:
    assert before[:3] == after[:3]
    torch.testing.assert_close(before[3], after[3], rtol=0, atol=0)


def test_hooks_see_each_module_in_the_order_of_the_pass_and_nothing_stays() -> None:
    model = Network().train()
    model.frozen.eval()
    before = snapshot(model)
    seen: list[tuple[str, nn.Module]] = []
    outputs: list[Tensor] = []

    def on_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(("after", module))
        outputs.append(output)

    logits = trace(
        model,
        8,
        [model.head, model.body],
        on_output,
        lambda module, inputs: seen.append(("before", module)),
    )
    assert seen == [("before", model.body), ("after", model.body), ("before", model.head), ("after", model.head)]
    torch.testing.assert_close(outputs[-1], logits, rtol=0, atol=0)
    assert logits.shape == (2, 5) and not logits.requires_grad
    assert_same(before, snapshot(model))
    torch.testing.assert_close(trace(model, 8, [], on_output), logits, rtol=0, atol=0)


def test_gradients_reach_outputs_of_a_frozen_network() -> None:
    model = Network().requires_grad_(False)
    outputs: list[Tensor] = []
    with torch.no_grad():
        logits = trace(model, 8, [model.body], lambda module, inputs, output: outputs.append(output), gradients=True)
    (gradient,) = torch.autograd.grad(logits.sum(), outputs)
    # Of the logits' sum, the weights of the head over the positions that are averaged: 6 × 6.
    expected = model.head.weight.sum(dim=0) / (1 + model.frozen.eps) ** 0.5 / 36
    torch.testing.assert_close(gradient, expected[None, :, None, None].expand_as(gradient))


def test_a_pass_that_fails_leaves_neither_hooks_nor_another_mode() -> None:
    model = Network().train()
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        trace(model, 1, model.modules(), lambda module, inputs, output: None)
    assert_same(before, snapshot(model))
