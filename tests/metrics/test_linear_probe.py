"""The linear probe against scikit-learn's logistic regression, on real images' features and at the ends of the grid."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ffcv_train.metrics.linear_probe import GRID, Fit, Regression, held_out_mask, linear_probe, score


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1797 handwritten digits as 64 features of very different scales, three of them constant."""
    data = load_digits()
    features = torch.from_numpy(data.data) * torch.logspace(-2, 1, 64, dtype=torch.float64) + 3
    return features, torch.from_numpy(data.target)


def objective(fit: Fit, features: Tensor, labels: Tensor, strength: float) -> float:
    logits = features @ fit.weight.T + fit.bias
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return float(loss + strength / 2 * fit.weight.square().sum())


@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e3])
def test_fit_is_that_of_scikit_learn(digits: tuple[Tensor, Tensor], strength: float) -> None:
    features, labels = (t[:500] for t in digits)
    problem, fit = Regression(features, labels, 10), None
    for stronger in (s for s in sorted(GRID[::2], reverse=True) if s > strength):
        fit = problem.fit(stronger, fit)
    fit = problem.fit(strength, fit)
    reference = LogisticRegression(C=1 / strength, tol=1e-10, solver="newton-cholesky")
    reference.fit(features.numpy(), labels.numpy())
    minimum = Fit(torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_), 0, True)
    found, least = (objective(f, features, labels, strength) for f in (fit, minimum))
    gap = 1e-4 * least
    assert found == pytest.approx(least, abs=gap)
    # The objective is strongly convex with modulus `strength`: so far from its minimum is what has such a gap. How far
    # within it a processor's rounding lets the search end is its own affair.
    assert np.linalg.norm(fit.weight.numpy() - reference.coef_) <= np.sqrt(2 * gap / strength)
    assert fit.converged or strength < 1e3  # how many steps a flat valley takes is rounding too


def test_weak_end_separates(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = (t[:500].float() if t.is_floating_point() else t[:500] for t in digits)
    problem = Regression(features, labels, 10)
    fit = None
    for strength in sorted(GRID[::2], reverse=True):
        fit = problem.fit(strength, fit)
    assert fit is not None
    assert objective(fit, features, labels, GRID[0]) < 1e-3
    assert score(fit, features, labels)[0] == 1.0


def test_strong_end_predicts_the_class_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(90) // 30
    labels[:15] = 2
    fit = Regression(features, labels, 3).fit(1e9)
    shares = torch.bincount(labels).double() / 90
    torch.testing.assert_close(torch.softmax(fit.bias, 0), shares, atol=1e-5, rtol=0)


def test_warm_start_arrives_sooner_at_the_same_place(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = (t[:500] for t in digits)
    problem = Regression(features, labels, 10)
    cold = problem.fit(1e3)
    warm = problem.fit(1e3, problem.fit(1.5e3))
    assert warm.iterations < cold.iterations
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-4, rtol=1e-4)
    assert problem.fit(1e3, cold).iterations < warm.iterations


def test_probe_chooses_what_scikit_learn_would(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits[0].float(), digits[1]
    train, test = (features[:1200], labels[:1200]), (features[1200:], labels[1200:])
    seen: list[tuple[int, int]] = []
    probe = linear_probe(train, test, 10, grid=GRID[::4], progress=lambda done, of: seen.append((done, of)))
    away = held_out_mask(train[1], 0.2, 0)
    accuracies = []
    for candidate in probe.curve:
        reference = LogisticRegression(C=1 / candidate.strength, solver="newton-cholesky", tol=1e-8)
        reference.fit(train[0][~away].double().numpy(), train[1][~away].numpy())
        accuracies.append(reference.score(train[0][away].double().numpy(), train[1][away].numpy()))
        assert candidate.accuracy == pytest.approx(accuracies[-1], abs=0.009 if candidate.strength > 1e-2 else 0.022), (
            candidate
        )
    assert max(accuracies) == pytest.approx(max(c.accuracy for c in probe.curve), abs=0.005)
    final = LogisticRegression(C=1 / probe.strength, solver="newton-cholesky", tol=1e-8)
    final.fit(train[0].double().numpy(), train[1].numpy())
    assert probe.accuracy == pytest.approx(final.score(test[0].double().numpy(), test[1].numpy()), abs=0.004)
    assert [c.strength for c in probe.curve] == sorted(GRID[::4])
    assert probe.train_samples == 1200 and probe.held_out_samples == int(away.sum()) and probe.test_samples == 597
    assert seen[-1] == (len(probe.curve) + 1, len(probe.curve) + 1)


def test_the_grid_is_the_published_one() -> None:
    np.testing.assert_allclose(GRID, np.logspace(-6, 5, 45))


def test_held_out_share_is_of_every_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 40 + [2] * 4)
    mask = held_out_mask(labels, 0.2, 3)
    assert [int(mask[labels == k].sum()) for k in range(3)] == [2, 8, 0]
    assert torch.equal(mask, held_out_mask(labels, 0.2, 3))
    assert not torch.equal(mask, held_out_mask(labels, 0.2, 4))
    with pytest.raises(ValueError, match="too few"):
        held_out_mask(torch.tensor([0, 1, 2]), 0.2, 0)


def test_what_is_refused() -> None:
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    for features, labels in ((x, y[:5]), (x[:, 0], y), (x[:0], y[:0]), (x, y + 1), (x.log(), y)):
        with pytest.raises(ValueError):
            Regression(features, labels, 2)
    with pytest.raises(ValueError, match="above 0"):
        linear_probe((x, y), (x, y), 2, grid=(0.0,))
