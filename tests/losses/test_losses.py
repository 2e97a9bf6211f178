"""What holds for every criterion, and the stateless ones against PyTorch's label smoothing and NumPy in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_train.config.schema import LossConfig
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.losses.balanced_softmax import balanced_softmax
from ffcv_train.losses.base import Criterion
from ffcv_train.losses.bce import binary_cross_entropy
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.losses.error_amplification_only import error_amplification_only
from ffcv_train.losses.focal import focal
from ffcv_train.losses.label_smoothing import label_smoothing
from ffcv_train.losses.ldam import class_margins
from ffcv_train.losses.logit_penalty import logit_penalty
from ffcv_train.losses.maxsup import maxsup
from ffcv_train.losses.regularization_only import regularization_only
from ffcv_train.losses.weighted_ce import class_weights, weighted_cross_entropy
from ffcv_train.losses.zipf import Zipf
from ffcv_train.models.inspect.dense_head import DenseHead
from ffcv_train.system.errors import UserError

BATCH, CLASSES = 6, 5
COUNTS = [5000, 800, 120, 20, 3]
# Arg maxima at seven positions of each sample's feature map: some classes without a vote, some tied.
TOP_CLASSES = torch.tensor([[0, 1, 1, 2, 2, 3, 0]] * 3 + [[4, 4, 4, 4, 2, 2, 1]] * 3)


def batch(seed: int = 0, soft: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(BATCH, CLASSES, generator=random, dtype=dtype)
    hard = torch.randint(CLASSES, (BATCH,), generator=random)
    mixed = torch.rand(BATCH, CLASSES, generator=random, dtype=dtype).softmax(dim=-1)
    return logits, mixed if soft else hard


def criterion_named(name: str, epoch: int = 0, classes: int = CLASSES) -> Criterion:
    criterion = create_criterion(LossConfig(name=name), num_classes=classes, epochs=4, class_counts=COUNTS[:classes])
    criterion.start_epoch(epoch)
    if isinstance(criterion, Zipf):
        criterion.head = DenseHead("", torch.nn.Identity(), True, 0, top_classes=TOP_CLASSES)
    return criterion


def numpy_loss(name: str, logits: np.ndarray, targets: np.ndarray, alpha: float) -> float:
    """The mean loss of default options from the method's table, one sample and one class at a time."""
    total = 0.0
    for number, (z, y) in enumerate(zip(logits.tolist(), targets.tolist(), strict=True)):
        classes = range(len(z))
        weights = y if isinstance(y, list) else [float(k == y) for k in classes]
        log_sum = max(z) + np.log(sum(np.exp(v - max(z)) for v in z))
        entropy = -sum(weights[k] * (z[k] - log_sum) for k in classes)
        mean = sum(z) / len(z)
        true = sum(weights[k] * z[k] for k in classes)
        if name == "ols":  # in its first epoch: rows of label smoothing with 0.1
            smooth = -sum((0.9 * weights[k] + 0.1 / len(z)) * (z[k] - log_sum) for k in classes)
            total += 0.5 * entropy + 0.5 * smooth
            continue
        if name == "bce":
            signs = [np.logaddexp(0, -v) * w + np.logaddexp(0, v) * (1 - w) for v, w in zip(z, weights, strict=True)]
            total += sum(signs) / len(z)
            continue
        if name in ("focal", "weighted_ce", "balanced_softmax", "ldam"):
            log_q = [v - log_sum for v in z]
            raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]
            shares = [w * len(raw) / sum(raw) for w in raw]
            if name == "focal":
                total -= sum(weights[k] * (1 - np.exp(log_q[k])) ** 2 * log_q[k] for k in classes)
            elif name == "weighted_ce":
                total -= sum(weights[k] * shares[k] * log_q[k] for k in classes)
            elif name == "balanced_softmax":
                seen = sum(n * np.exp(v) for n, v in zip(COUNTS, z, strict=True))
                total -= sum(weights[k] * np.log(COUNTS[k] * np.exp(z[k]) / seen) for k in classes)
            else:  # as its authors' code: the margin off the true logit; weights from epoch 3.2 of 4 on, thus never
                margin = 0.5 * COUNTS[y] ** -0.25 / min(COUNTS) ** -0.25
                rest = sum(np.exp(v) for k, v in enumerate(z) if k != y)
                total += np.log(1 + rest / np.exp(z[y] - margin))
            continue
        total += entropy
        if name == "ls":
            total += alpha * (true - mean)
        elif name == "maxsup":
            total += alpha * (max(z) - mean)
        elif name == "logit_penalty":
            total += 6e-4 / 2 * sum(v * v for v in z)
        elif name == "regularization_only":
            total += alpha / len(z) * sum(true - v for v in z if v < true)
        elif name == "error_amplification_only":
            total += alpha / len(z) * sum(true - v for v in z if v > true)
        elif name == "zipf":
            votes = TOP_CLASSES[number].tolist()
            others = sorted((k for k in classes if k != y), key=lambda k: (-votes.count(k), -z[k]))
            harmonic = sum(1 / rank for rank in range(1, len(z)))
            log_others = np.log(sum(np.exp(z[k]) for k in others))
            for rank, k in enumerate(others, start=1):
                p = 1 / rank / harmonic
                total += 0.1 * p * (np.log(p) - (z[k] - log_others))
        else:
            assert name == "ce"
    return total / len(logits)


each = pytest.mark.parametrize("name", list(CRITERIA))
hard_and_soft = pytest.mark.parametrize(
    ("name", "soft"),
    [(name, soft) for name in CRITERIA for soft in (False, True) if not soft or CRITERIA[name].takes_soft_targets],
)


@hard_and_soft
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_criteria_equal_the_method_in_numpy(name: str, soft: bool, seed: int, epoch: int) -> None:
    logits, targets = batch(seed, soft)
    expected = numpy_loss(name, logits.numpy(), targets.numpy(), alpha=0.1 + 0.1 * epoch / 4)
    # What follows from the class counts is held in float32.
    rel = 1e-6 if name in ("weighted_ce", "balanced_softmax", "ldam") else 1e-7
    assert criterion_named(name, epoch)(logits, targets).item() == pytest.approx(expected, rel=rel)


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


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_ablations_sum_to_label_smoothing(seed: int, soft: bool) -> None:
    logits, targets = batch(seed, soft)
    entropy = cross_entropy(logits, targets)
    parts = regularization_only(logits, targets, 0.3) + error_amplification_only(logits, targets, 0.3) - 2 * entropy
    torch.testing.assert_close(parts, label_smoothing(logits, targets, 0.3) - entropy, rtol=1e-12, atol=1e-12)


def test_the_ablations_leave_ties_with_the_true_class_alone() -> None:
    logits, targets = torch.tensor([[2.0, 2.0, 1.0, 3.0]]), torch.tensor([0])
    plain = gradient(lambda z: cross_entropy(z, targets), logits)
    below = gradient(lambda z: regularization_only(z, targets, 1.0), logits) - plain
    above = gradient(lambda z: error_amplification_only(z, targets, 1.0), logits) - plain
    torch.testing.assert_close(below, torch.tensor([[0.25, 0.0, -0.25, 0.0]]))
    torch.testing.assert_close(above, torch.tensor([[0.25, 0.0, 0.0, -0.25]]))


def test_error_amplification_is_nothing_where_all_predictions_are_right() -> None:
    logits, _ = batch(11)
    top = logits.argmax(dim=-1)
    torch.testing.assert_close(error_amplification_only(logits, top, 0.2), cross_entropy(logits, top))
    torch.testing.assert_close(regularization_only(logits, top, 0.2), label_smoothing(logits, top, 0.2))


def test_logit_penalty_gradient_is_beta_times_the_logits() -> None:
    logits, targets = batch(12)
    penalty = gradient(lambda z: logit_penalty(z, targets, 0.02) - cross_entropy(z, targets), logits)
    torch.testing.assert_close(penalty, 0.02 * logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_two_classes_is_torchvisions(gamma: float) -> None:
    logits, _ = batch(20)
    two, targets = torch.stack([torch.zeros(BATCH), logits[:, 0]], dim=1).double(), torch.tensor([0, 1, 0, 1, 1, 0])
    expected = torchvision.ops.sigmoid_focal_loss(logits[:, 0], targets.double(), alpha=-1, gamma=gamma)
    torch.testing.assert_close(focal(two, targets, gamma), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_without_a_power_is_cross_entropy(soft: bool) -> None:
    logits, targets = batch(21, soft)
    torch.testing.assert_close(focal(logits, targets, 0.0), cross_entropy(logits, targets))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_focal_loss_has_a_gradient_where_a_sample_is_certain(gamma: float) -> None:
    logits, targets = torch.tensor([[200.0, 0.0], [-200.0, 0.0]]), torch.tensor([0, 0])
    found = gradient(lambda z: focal(z, targets, gamma), logits)
    assert found[0].abs().max() < 1e-6
    torch.testing.assert_close(found[1], torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms(smoothing: float, threshold: float, sum_classes: bool) -> None:
    logits, targets = batch(22, dtype=torch.float32)
    reference = TimmBinaryCrossEntropy(smoothing, threshold or None, sum_classes=sum_classes)
    found = binary_cross_entropy(logits, targets, smoothing, threshold, sum_classes).mean()
    torch.testing.assert_close(found, reference(logits, targets))
    logits, mixed = batch(23, soft=True, dtype=torch.float32)
    reference = TimmBinaryCrossEntropy(0.0, threshold or None, sum_classes=sum_classes)
    found = binary_cross_entropy(logits, mixed, 0.0, threshold, sum_classes).mean()
    torch.testing.assert_close(found, reference(logits, mixed))


def test_class_weights_reach_from_alike_to_inverse_frequency() -> None:
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    torch.testing.assert_close(class_weights(counts, 0.0), torch.ones(CLASSES, dtype=torch.float64))
    inverse = class_weights(counts, 1.0)
    torch.testing.assert_close(inverse * counts, (inverse * counts)[:1].expand(CLASSES))
    torch.testing.assert_close(class_weights(counts, 1 - 1e-12), inverse, rtol=1e-3, atol=0)
    assert class_weights(counts, 0.9999).mean().item() == pytest.approx(1)


@pytest.mark.parametrize("soft", [False, True])
def test_weighted_cross_entropy_is_pytorchs_but_for_what_the_mean_divides_by(soft: bool) -> None:
    logits, targets = batch(24, soft)
    weights = class_weights(torch.tensor(COUNTS, dtype=torch.float64), 0.999)
    expected = F.cross_entropy(logits, targets, weight=weights, reduction="sum")
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights).sum(), expected)


def test_balanced_softmax_of_equal_counts_is_cross_entropy() -> None:
    logits, targets = batch(25)
    torch.testing.assert_close(
        balanced_softmax(logits, targets, torch.full((CLASSES,), -1.7, dtype=torch.float64)),
        cross_entropy(logits, targets),
    )


def test_ldam_weights_classes_late_and_in_place() -> None:
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    assert class_margins(counts, 0.5).tolist() == pytest.approx([0.5 * (3 / n) ** 0.25 for n in COUNTS])
    criterion = create_criterion(
        LossConfig(name="ldam", ldam_scale=30.0), num_classes=CLASSES, epochs=10, class_counts=COUNTS
    )
    buffer = criterion.get_buffer("weights")
    logits, targets = batch(26)
    found = {}
    for epoch in (7, 8, 0):
        criterion.start_epoch(epoch)
        found[epoch] = criterion(logits, targets)
        assert criterion.scalars() == {"class_weighting": float(epoch == 8)}
    assert criterion.get_buffer("weights") is buffer
    shifted = logits - F.one_hot(targets, CLASSES) * class_margins(counts, 0.5)[targets][:, None]
    sums = F.cross_entropy(30 * shifted, targets, weight=class_weights(counts, 0.9999), reduction="sum")
    torch.testing.assert_close(found[8], sums / BATCH, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[7], F.cross_entropy(30 * shifted, targets), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0], found[7])


@pytest.mark.parametrize("name", ["weighted_ce", "balanced_softmax", "ldam"])
def test_a_class_without_samples_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"loss.name={name} takes .* no sample of label 2"):
        create_criterion(LossConfig(name=name), num_classes=4, epochs=1, class_counts=[3, 1, 0, 2])
    with pytest.raises(ValueError, match="needs class_counts"):
        create_criterion(LossConfig(name=name), num_classes=4, epochs=1)


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


@hard_and_soft
def test_gradients_are_right(name: str, soft: bool) -> None:
    logits, targets = batch(4, soft)
    criterion = criterion_named(name)
    assert torch.autograd.gradcheck(lambda z: criterion(z, targets), (logits.requires_grad_(),))


@hard_and_soft
def test_a_constant_on_all_logits_changes_nothing(name: str, soft: bool) -> None:
    logits, targets = batch(5, soft)
    criterion = criterion_named(name)
    before, after = criterion(logits, targets), criterion(logits + 7.5, targets)
    if name == "logit_penalty":
        # By definition not: (β/2) Σ (z + c)² − z².
        before = before + 3e-4 * (2 * 7.5 * logits.sum(dim=-1) + CLASSES * 7.5**2).mean()
    if name == "bce":
        # No softmax: every logit counts by itself.
        assert (after - before).abs() > 1
        return
    torch.testing.assert_close(after, before)


@hard_and_soft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_logits_of_any_type_give_finite_float32(name: str, soft: bool, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (BATCH, CLASSES), generator=random)
    logits = (1e4 * signs).to(dtype).requires_grad_()
    targets = torch.eye(CLASSES)[[0, 1, 2, 3, 4, 0]] if soft else torch.tensor([0, 1, 2, 3, 4, 0])
    if soft:
        targets = (targets + targets.roll(1, 0)) / 2
    loss = criterion_named(name)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


@hard_and_soft
def test_half_precision_logits_cost_no_more_than_their_rounding(name: str, soft: bool) -> None:
    logits, targets = batch(6, soft, torch.float32)
    rounded = logits.bfloat16()
    criterion = criterion_named(name)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion(rounded, targets)
    torch.testing.assert_close(mixed, criterion(rounded.double(), targets).float(), rtol=1e-6, atol=1e-6)


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
    reference = criterion_named(name)
    for epoch in range(4):
        criterion.start_epoch(epoch)
        reference.start_epoch(epoch)
        torch.testing.assert_close(compiled(logits, targets), reference(logits, targets))
        criterion.end_epoch()
        reference.end_epoch()
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


@hard_and_soft
def test_a_step_never_waits_for_the_device(name: str, soft: bool) -> None:
    logits, targets = batch(9, soft, torch.float32)
    criterion = criterion_named(name)
    with NoWaits():
        criterion.start_epoch(1)
        criterion(logits.requires_grad_(), targets).backward()
        criterion.end_epoch()
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


@pytest.mark.parametrize("name", ["ls", "maxsup", "regularization_only", "error_amplification_only"])
def test_alpha_changes_in_place_and_shows_in_the_log(name: str) -> None:
    criterion = create_criterion(LossConfig(name=name, alpha_start=0.0, alpha_end=0.4), num_classes=3, epochs=8)
    buffer = criterion.get_buffer("alpha")
    assert criterion.scalars() == {"alpha": 0.0}
    criterion.start_epoch(6)
    assert criterion.scalars() == {"alpha": pytest.approx(0.3)}
    assert criterion.get_buffer("alpha") is buffer
    assert buffer.item() == pytest.approx(0.3)
    assert not criterion.state_dict()


@pytest.mark.parametrize("name", ["ls", "maxsup", "regularization_only", "error_amplification_only"])
def test_alpha_follows_the_schedule_that_is_asked_for(name: str) -> None:
    seen = {}
    for schedule in ("approach", "reach"):
        criterion = create_criterion(LossConfig(name=name, alpha_schedule=schedule), num_classes=3, epochs=90)
        criterion.start_epoch(89)
        seen[schedule] = criterion.scalars()["alpha"]
    assert seen == {"approach": pytest.approx(0.1 + 0.1 * 89 / 90), "reach": pytest.approx(0.2)}


@each
def test_probabilities_are_taken_or_refused_in_words(name: str) -> None:
    logits, targets = batch(13, soft=True)
    if CRITERIA[name].takes_soft_targets:
        assert criterion_named(name)(logits, targets).isfinite()
        return
    with pytest.raises(ValueError, match=r"not defined for targets that are probabilities \(Mixup, CutMix\)"):
        criterion_named(name)(logits, targets)


@each
def test_one_hot_probabilities_equal_class_indices(name: str) -> None:
    logits, targets = batch(14)
    if CRITERIA[name].takes_soft_targets:
        one_hot = F.one_hot(targets, CLASSES).double()
        torch.testing.assert_close(criterion_named(name)(logits, one_hot), criterion_named(name)(logits, targets))


@each
def test_state_survives_a_checkpoint(name: str) -> None:
    first, second = criterion_named(name), criterion_named(name)
    for number in range(3):
        first(*batch(number))
        if number == 1:
            first.end_epoch()
    second.load_state_of_all_ranks(first.state_of_all_ranks(), rank=0)
    first.end_epoch()
    second.end_epoch()
    torch.testing.assert_close(second(*batch(15)), first(*batch(15)), rtol=0, atol=0)


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
