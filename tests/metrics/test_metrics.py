"""Metrics against torchmetrics, scikit-learn and plain NumPy in float64."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from ffcv_train.metrics.classification import BINS, MetricSums, confidence_bins


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> MetricSums:
    sums = MetricSums()
    sums.update(logits, labels)
    return sums


def random_batch(count: int, classes: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.0
    return logits * scale, labels


def numpy_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The definitions, sample by sample, in float64 with Python's own sums."""
    top_1 = top_5 = 0
    nll, bins = [], [[0, [], 0] for _ in range(BINS)]
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))
        top_1 += order[0] == label
        top_5 += label in order[:5]
        shifted = row - row.max()
        probabilities = np.exp(shifted) / np.exp(shifted).sum()
        nll.append(np.log(np.exp(shifted).sum()) - shifted[label])
        index = next(i for i in range(BINS) if probabilities.max() <= (i + 1) / BINS)
        bins[index][0] += 1
        bins[index][1].append(probabilities.max())
        bins[index][2] += order[0] == label
    n = len(labels)
    ece = sum(abs(hits / m - math.fsum(c) / m) * m / n for m, c, hits in bins if m)
    return {"count": n, "top_1": top_1 / n, "top_5": top_5 / n, "nll": math.fsum(nll) / n, "ece": ece}


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (7, 3), (200, 5), (333, 10), (64, 1000)])
def test_equals_the_definitions_in_numpy(count: int, classes: int) -> None:
    logits, labels = random_batch(count, classes, seed=count)
    expected = numpy_metrics(logits.numpy(), labels.numpy())
    found = sums_of(logits, labels).compute()
    assert found["count"] == count
    assert (found["top_1"], found["top_5"]) == (expected["top_1"], expected["top_5"])
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-12, abs=1e-14)
    assert found["ece"] == pytest.approx(expected["ece"], rel=1e-9, abs=1e-12)


def test_equals_torchmetrics_and_scikit_learn() -> None:
    logits, labels = random_batch(2000, 100, seed=0, scale=2.0)
    found = sums_of(logits, labels).compute()
    for key, k in (("top_1", 1), ("top_5", 5)):
        reference = MulticlassAccuracy(num_classes=100, top_k=k, average="micro")(logits, labels)
        assert found[key] == pytest.approx(reference.item(), abs=1e-6)
    # Its bins are closed on the left; no confidence here lies on an edge.
    reference = MulticlassCalibrationError(num_classes=100, n_bins=15, norm="l1")(logits, labels)
    assert found["ece"] == pytest.approx(reference.item(), abs=1e-5)
    assert 0.02 < found["ece"] < 0.9
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    assert found["nll"] == pytest.approx(log_loss(labels.numpy(), probabilities, labels=range(100)), rel=1e-9)


def test_bins_hold_the_reliability_diagram() -> None:
    logits, labels = random_batch(500, 10, seed=1)
    found = sums_of(logits, labels).compute()
    counts = np.array(found["bins"]["count"])
    assert counts.sum() == 500
    filled = counts > 0
    accuracy = np.array(found["bins"]["accuracy"], dtype=float)
    confidence = np.array(found["bins"]["confidence"], dtype=float)
    assert found["top_1"] == pytest.approx((accuracy * counts)[filled].sum() / 500)
    assert found["ece"] == pytest.approx((abs(accuracy - confidence) * counts)[filled].sum() / 500)
    lower, upper = np.arange(BINS) / BINS, np.arange(1, BINS + 1) / BINS
    assert (confidence[filled] > lower[filled]).all()
    assert (confidence[filled] <= upper[filled]).all()
    assert [a is None for a in found["bins"]["accuracy"]] == (counts == 0).tolist()


def test_bins_are_closed_on_the_right() -> None:
    edges = torch.arange(1, BINS + 1, dtype=torch.float64) / BINS
    assert confidence_bins(edges).tolist() == list(range(BINS))
    above = torch.nextafter(edges, torch.tensor(2.0, dtype=torch.float64))
    assert confidence_bins(above).tolist() == [*range(1, BINS), BINS - 1]
    assert confidence_bins(torch.tensor([1e-300, 0.5, math.nan], dtype=torch.float64)).tolist() == [0, 7, 14]


def test_certainty_falls_in_the_last_bin() -> None:
    found = sums_of(torch.tensor([[200.0, 0.0], [200.0, 0.0]]), torch.tensor([0, 1])).compute()
    assert found["bins"]["count"] == [0] * 14 + [2]
    assert found["bins"]["confidence"][-1] == 1.0
    assert (found["top_1"], found["ece"]) == (0.5, 0.5)
    assert found["nll"] == 100.0


def test_equal_logits_rank_by_class_index() -> None:
    logits = torch.zeros(10, 10)
    labels = torch.arange(10)
    found = sums_of(logits, labels).compute()
    assert (found["top_1"], found["top_5"]) == (0.1, 0.5)
    assert found["nll"] == pytest.approx(math.log(10), rel=1e-14)
    # As argmax on the CPU, also where the tie is not among all classes.
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    assert sums_of(logits, torch.tensor([1])).compute()["top_1"] == 1.0
    assert sums_of(logits, torch.tensor([2])).compute()["top_1"] == 0.0


def test_fewer_than_five_classes() -> None:
    logits, labels = random_batch(50, 3, seed=2)
    found = sums_of(logits, labels).compute()
    assert found["top_5"] == 1.0
    assert found["top_1"] < 1.0


def test_nan_logits_are_misses_and_show_in_the_result() -> None:
    logits = torch.tensor([[math.nan, 0.0, 1.0], [0.0, math.nan, 1.0], [9.0, 0.0, 0.0]])
    found = sums_of(logits, torch.tensor([0, 2, 0])).compute()
    assert found["count"] == 3
    assert found["top_1"] == pytest.approx(1 / 3)
    assert math.isnan(found["nll"])
    assert math.isnan(found["ece"])
    assert sum(found["bins"]["count"]) == 3
    found = sums_of(torch.full((4, 10), math.nan), torch.arange(4)).compute()
    assert (found["top_1"], found["top_5"]) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(dtype: torch.dtype) -> None:
    logits, labels = random_batch(100, 10, seed=3)
    logits = logits.to(dtype)
    expected = numpy_metrics(logits.double().numpy(), labels.numpy())
    found = sums_of(logits, labels).compute()
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 120),
    classes=st.integers(2, 20),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    scale=st.sampled_from([0.0, 0.01, 1.0, 10.0, 1000.0]),
)
def test_sums_do_not_depend_on_the_split(seed: int, count: int, classes: int, cuts: list[int], scale: float) -> None:
    logits, labels = random_batch(count, classes, seed, scale)
    whole = sums_of(logits, labels)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [sums_of(logits[a:b], labels[a:b]) for a, b in itertools.pairwise(edges)]
    total = MetricSums()
    for part in reversed(parts):
        total = total + part
    assert torch.equal(total.integers, whole.integers)
    torch.testing.assert_close(total.reals, whole.reals, rtol=1e-12, atol=1e-12)
    a, b = total.compute(), whole.compute()
    assert (a["count"], a["top_1"], a["top_5"]) == (b["count"], b["top_1"], b["top_5"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 30), levels=st.integers(1, 5))
def test_bounds_and_permutation(seed: int, classes: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (64, classes), generator=generator).float()  # many ties
    labels = torch.randint(0, classes, (64,), generator=generator)
    found = sums_of(logits, labels).compute()
    assert 0 <= found["top_1"] <= found["top_5"] <= 1
    assert 0 <= found["ece"] <= 1
    assert found["nll"] >= 0
    assert found["top_1"] == (logits.argmax(dim=1) == labels).double().mean().item()
    order = torch.randperm(64, generator=generator)
    permuted = sums_of(logits[order], labels[order]).compute()
    assert permuted["nll"] == pytest.approx(found["nll"], rel=1e-12)
    assert permuted["bins"]["count"] == found["bins"]["count"]


def test_reduce_sums_over_ranks() -> None:
    logits, labels = random_batch(997, 10, seed=4)
    shares = [sums_of(logits[rank::3], labels[rank::3]) for rank in range(3)]
    totals = [sum(s.integers for s in shares), sum(s.reals for s in shares)]

    def all_reduce(tensor: torch.Tensor) -> None:  # what the process group would do on rank 0
        tensor.copy_(totals[0] if tensor.dtype == torch.int64 else totals[1])

    reduced = shares[0].reduce(all_reduce).compute()
    assert reduced["count"] == 997
    whole = sums_of(logits, labels).compute()
    assert reduced.pop("bins")["count"] == whole.pop("bins")["count"]
    assert reduced == pytest.approx(whole, rel=1e-12)


def test_millions_of_samples_lose_nothing() -> None:
    # float32 sums stop counting at 2^24.
    sums = sums_of(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    for _ in range(25):
        sums = sums + sums
    found = sums.compute()
    assert found["count"] == 2**25
    assert found["nll"] == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-14)


def test_refuses_what_it_cannot_count() -> None:
    logits, labels = random_batch(4, 3, seed=5)
    with pytest.raises(ValueError, match="no sample"):
        MetricSums().compute()
    for bad_logits, bad_labels in (
        (logits[0], labels),
        (logits, labels[:3]),
        (logits.long(), labels),
        (logits, labels.int()),
        (logits, torch.nn.functional.one_hot(labels, 3)),
    ):
        with pytest.raises(ValueError):
            MetricSums().update(bad_logits, bad_labels)
    empty = sums_of(logits[:0], labels[:0])
    assert empty.integers.sum() == 0


def test_does_not_keep_the_graph() -> None:
    logits, labels = random_batch(4, 3, seed=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums = sums_of(logits.requires_grad_(), labels)
    assert not sums.reals.requires_grad
