"""Feature metrics against the definition over all pairs, in float64, and on features whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ffcv_train.metrics.features import FeatureMetrics, FeatureSums, feature_metrics, metrics_of, remarks
from ffcv_train.metrics.logits_file import LogitsFile
from ffcv_train.system.errors import UserError


def all_pairs(features: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Kornblith et al., appendix: means of 1 − cosine over all pairs, written as they stand there."""
    x = features.astype(np.float64)
    distances = 1 - (x @ x.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    classes = np.unique(labels)
    within = [distances[np.ix_(labels == k, labels == k)].mean() for k in classes]
    total = [distances[np.ix_(labels == j, labels == k)].mean() for j in classes for k in classes]
    d_within, d_total = float(np.mean(within)), float(np.mean(total))
    return d_within, d_total, 1 - d_within / d_total


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """500 handwritten digits, in float32; the classes are of different sizes."""
    data = load_digits()
    keep = np.flatnonzero((data.target != 3) | (np.arange(len(data.target)) % 4 == 0))[:500]
    return torch.from_numpy(data.data[keep]).float(), torch.from_numpy(data.target[keep])


def test_equal_to_all_pairs_on_500_samples(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    found = feature_metrics(features, labels, 10)
    expected = all_pairs(features.numpy(), labels.numpy())
    assert (found.d_within, found.d_total, found.r_squared) == pytest.approx(expected, abs=1e-12)
    assert (found.samples, found.classes, found.zero_features) == (500, 10, 0)
    assert found.smallest_class == int(np.bincount(labels).min())


def test_batches_ranks_and_scales_do_not_matter(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    whole = feature_metrics(features, labels, 12)  # two classes without samples count nowhere
    assert whole == feature_metrics(features, labels, 10)
    ranks = [FeatureSums(10, 64), FeatureSums(10, 64)]
    for rank, sums in enumerate(ranks):
        for part in torch.arange(len(labels))[rank::2].split(37):
            sums.update(features[part] * 1e-30, labels[part])
    others = iter([ranks[1].vectors, ranks[1].counts, ranks[1].zeros, ranks[1].strange])
    found = ranks[0].reduce(lambda tensor: tensor.add_(next(others))).compute()
    assert (found.d_within, found.d_total) == pytest.approx((whole.d_within, whole.d_total), abs=1e-6)
    assert found.samples == 500
    half = feature_metrics(features.to(torch.bfloat16), labels, 10)
    assert half.d_within == pytest.approx(whole.d_within, abs=1e-2)


def test_known_answers() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    # Each class one direction, the two at right angles: within 0, total ½, R² 1.
    found = feature_metrics(torch.tensor([[1.0, 0], [5, 0], [0, 2], [0, 3]]), labels, 2)
    assert (found.d_within, found.d_total, found.r_squared) == pytest.approx((0, 0.5, 1))
    # Opposite directions within each class: no class mean at all.
    found = feature_metrics(torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]]), labels, 2)
    assert (found.d_within, found.d_total, found.r_squared) == pytest.approx((1, 1, 0))
    # One direction for all: nothing to separate.
    found = feature_metrics(torch.tensor([[1.0, 1], [2, 2], [3, 3], [0.1, 0.1]]), labels, 2)
    assert (found.d_within, found.d_total) == (0, 0)
    assert math.isnan(found.r_squared)


def test_classes_weigh_the_same() -> None:
    features = torch.tensor([[1.0, 0], [0, 1]] + [[1.0, 0]] * 98)
    labels = torch.tensor([0, 0] + [1] * 98)
    assert feature_metrics(features, labels, 2).d_within == pytest.approx((0.5 + 0) / 2)


def test_zero_and_strange_features(tmp_path: Path) -> None:
    features = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    labels = torch.tensor([0, 0, 1])
    found = feature_metrics(features, labels, 2)
    assert found.zero_features == 1
    assert found.d_within == pytest.approx((0.75 + 0) / 2)  # cosines 1, 0, 0, 0 within class 0
    assert any("all 0" in remark for remark in remarks(found))
    assert any("smallest class: 1" in remark for remark in remarks(found))
    assert remarks(FeatureMetrics(0.2, 0.5, 0.6, 100, 5, 20, 0)) == []
    features[1, 0] = torch.nan
    file = LogitsFile(tmp_path / "L.pt", torch.zeros(3, 2), labels, features)
    with pytest.raises(UserError, match=r"features of 1 samples are not finite in .*L\.pt"):
        metrics_of(file)
    with pytest.raises(ValueError, match="no sample"):
        FeatureSums(2, 2).compute()
