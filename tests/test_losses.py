"""Criteria against independent references: PyTorch's label smoothing and NumPy in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_train.config import LossConfig
from ffcv_train.errors import UserError
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.losses.base import Criterion
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.losses.label_smoothing import label_smoothing
from ffcv_train.losses.maxsup import maxsup

BATCH, CLASSES = 6, 5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On small tensors several threads only wait for one another, the more so where tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(seed: int = 0, soft: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(BATCH, CLASSES, generator=random, dtype=dtype)
    hard = torch.randint(CLASSES, (BATCH,), generator=random)
    mixed = torch.rand(BATCH, CLASSES, generator=random, dtype=dtype).softmax(dim=-1)
    return logits, mixed if soft else hard


def criterion_named(name: str, epoch: int = 0) -> Criterion:
    criterion = create_criterion(LossConfig(name=name), num_classes=CLASSES, epochs=4)
    criterion.start_epoch(epoch)
    return criterion


def numpy_loss(name: str, logits: np.ndarray, targets: np.ndarray, alpha: float) -> float:
    """The mean loss from the method's table, one sample and one class at a time."""
    total = 0.0
    for z, y in zip(logits.tolist(), targets.tolist(), strict=True):
        weights = y if isinstance(y, list) else [float(k == y) for k in range(len(z))]
        log_sum = max(z) + np.log(sum(np.exp(v - max(z)) for v in z))
        total -= sum(w * (v - log_sum) for w, v in zip(weights, z, strict=True))
        mean = sum(z) / len(z)
        total += {
            "ce": 0.0,
            "ls": alpha * (sum(w * v for w, v in zip(weights, z, strict=True)) - mean),
            "maxsup": alpha * (max(z) - mean),
        }[name]
    return total / len(logits)


@settings(deadline=None, max_examples=50)
@given(
    name=st.sampled_from(["ce", "ls", "maxsup"]),
    soft=st.booleans(),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
)
def test_criteria_equal_the_method_in_numpy(name: str, soft: bool, seed: int, epoch: int) -> None:
    logits, targets = batch(seed, soft)
    expected = numpy_loss(name, logits.numpy(), targets.numpy(), alpha=0.1 + 0.1 * epoch / 4)
    assert criterion_named(name, epoch)(logits, targets).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_label_smoothing_equals_pytorch(alpha: float, soft: bool) -> None:
    logits, targets = batch(1, soft)
    expected = F.cross_entropy(logits, targets, label_smoothing=alpha, reduction="none")
    torch.testing.assert_close(label_smoothing(logits, targets, alpha), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_maxsup_gradient_is_the_closed_form(soft: bool) -> None:
    logits, targets = batch(2, soft)
    penalty = torch.full_like(logits, -0.3 / CLASSES)
    penalty[torch.arange(BATCH), logits.argmax(dim=-1)] += 0.3
    entropy = logits.softmax(dim=-1) - (targets if soft else F.one_hot(targets, CLASSES))
    torch.testing.assert_close(gradient(lambda z: maxsup(z, targets, 0.3), logits), entropy + penalty)


def test_maxsup_names_one_arg_max_among_ties() -> None:
    logits = torch.tensor([[2.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    targets = torch.tensor([1])
    penalty = gradient(lambda z: maxsup(z, targets, 1.0) - cross_entropy(z, targets), logits)
    assert sorted(penalty[0].tolist()) == pytest.approx([-0.25, -0.25, -0.25, 0.75])


def test_maxsup_equals_label_smoothing_where_the_top_class_is_true() -> None:
    logits, _ = batch(3)
    top = logits.argmax(dim=-1)
    torch.testing.assert_close(maxsup(logits, top, 0.2), label_smoothing(logits, top, 0.2))


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


each = pytest.mark.parametrize("name", list(CRITERIA))
hard_and_soft = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


@each
@hard_and_soft
def test_gradients_are_right(name: str, soft: bool) -> None:
    logits, targets = batch(4, soft)
    assert torch.autograd.gradcheck(lambda z: criterion_named(name)(z, targets), (logits.requires_grad_(),))


@each
@hard_and_soft
def test_a_constant_on_all_logits_changes_nothing(name: str, soft: bool) -> None:
    logits, targets = batch(5, soft)
    criterion = criterion_named(name)
    torch.testing.assert_close(criterion(logits + 7.5, targets), criterion(logits, targets))


@each
@hard_and_soft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_logits_of_any_type_give_finite_float32(name: str, soft: bool, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]) if soft else torch.tensor([1, 0])
    loss = criterion_named(name)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


@each
@hard_and_soft
def test_half_precision_logits_cost_no_more_than_their_rounding(name: str, soft: bool) -> None:
    logits, targets = batch(6, soft, torch.float32)
    rounded = logits.bfloat16()
    criterion = criterion_named(name)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion(rounded, targets)
    torch.testing.assert_close(mixed, criterion(rounded.double(), targets).float(), rtol=1e-6, atol=1e-6)


@each
@hard_and_soft
def test_compiles_in_one_graph_and_once_for_all_epochs(name: str, soft: bool) -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    criterion = criterion_named(name)
    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    logits, targets = batch(7, soft, torch.float32)
    for epoch in range(4):
        criterion.start_epoch(epoch)
        torch.testing.assert_close(compiled(logits, targets), criterion_named(name, epoch)(logits, targets))
    assert len(graphs) == 1


@each
def test_compiled_gradients_equal_eager_ones(name: str) -> None:
    torch.compiler.reset()
    logits, targets = batch(8, dtype=torch.float32)
    criterion = criterion_named(name)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        gradient(lambda z: compiled(z, targets), logits), gradient(lambda z: criterion(z, targets), logits)
    )


class NoWaits(TorchDispatchMode):
    """Refuses the operations for which the host would wait for a GPU: those that read values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@each
@hard_and_soft
def test_a_step_never_waits_for_the_device(name: str, soft: bool) -> None:
    logits, targets = batch(9, soft, torch.float32)
    criterion = criterion_named(name)
    with NoWaits():
        criterion.start_epoch(1)
        criterion(logits.requires_grad_(), targets).backward()
        criterion.scalars()


@each
@pytest.mark.parametrize(
    "targets",
    [torch.zeros(BATCH + 1, dtype=torch.int64), torch.zeros(BATCH), torch.zeros(BATCH, dtype=torch.int32)],
    ids=["length", "soft without classes", "int32"],
)
def test_targets_of_another_shape_or_type_are_refused(name: str, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="targets of logits"):
        criterion_named(name)(torch.zeros(BATCH, CLASSES), targets)


@pytest.mark.parametrize("name", ["ls", "maxsup"])
def test_alpha_changes_in_place_and_shows_in_the_log(name: str) -> None:
    criterion = create_criterion(LossConfig(name=name, alpha_start=0.0, alpha_end=0.4), num_classes=3, epochs=8)
    buffer = criterion.get_buffer("alpha")
    assert criterion.scalars() == {"alpha": 0.0}
    criterion.start_epoch(6)
    assert criterion.scalars() == {"alpha": pytest.approx(0.3)}
    assert criterion.get_buffer("alpha") is buffer
    assert buffer.item() == pytest.approx(0.3)
    assert not criterion.state_dict()


def test_cross_entropy_ignores_alpha() -> None:
    criterion = create_criterion(LossConfig(name="ce", alpha_start=0.9), num_classes=3, epochs=8)
    logits, targets = batch(10)
    torch.testing.assert_close(criterion(logits, targets), F.cross_entropy(logits, targets))
    assert criterion.scalars() == {}


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"loss\.name=maxsupp .*'maxsup'.*ce, ls, maxsup"):
        create_criterion(LossConfig(name="maxsupp"), num_classes=3, epochs=1)


def test_a_constructor_gets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe(Criterion):
        def __init__(self, num_classes: int, alpha_end: float) -> None:
            super().__init__()
            self.got = (num_classes, alpha_end)

    monkeypatch.setitem(CRITERIA, "probe", Probe)
    criterion = create_criterion(LossConfig(name="probe", alpha_end=0.7), num_classes=11, epochs=1)
    assert isinstance(criterion, Probe)
    assert criterion.got == (11, 0.7)
