"""Statistics of the suites against scikit-learn, torchmetrics and brute force in float64."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torchmetrics.functional.classification import multiclass_calibration_error

from ffcv_train.metrics.corruption import ALEXNET, summarise_corruptions
from ffcv_train.metrics.detection import detection, energy, nearest_similarity
from ffcv_train.metrics.groups import group_accuracy
from ffcv_train.metrics.selective import confidence_scores, selective
from ffcv_train.metrics.temperature import (
    RANGE,
    calibration,
    fit_temperature,
    mass_calibration_error,
    split_halves,
)

CLASSES = 7


def sample(count: int = 5000, scale: float = 3.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose own softmax, at temperature 1, drew the labels; then scaled."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, CLASSES))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return torch.from_numpy(scale * logits).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_temperature_is_where_nll_is_least(scale: float) -> None:
    logits, labels = sample(scale=scale)
    found = fit_temperature(logits, labels)

    def nll(log_t: float) -> float:
        scores = torch.softmax(logits.double() / np.exp(log_t), dim=1).numpy()
        return log_loss(labels.numpy(), scores / scores.sum(axis=1, keepdims=True))

    best = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert found.value == pytest.approx(np.exp(best.x), rel=1e-5)
    assert found.value == pytest.approx(scale, rel=0.1)
    assert not found.at_edge


def test_a_temperature_without_bounds_is_said() -> None:
    labels = torch.arange(CLASSES)
    right = torch.eye(CLASSES)
    assert (fit_temperature(right, labels).value, fit_temperature(right, labels).at_edge) == (RANGE[0], True)
    wrong = right.roll(1, 0)
    assert (fit_temperature(wrong, labels).value, fit_temperature(wrong, labels).at_edge) == (RANGE[1], True)
    with pytest.raises(ValueError, match="no samples"):
        fit_temperature(right[:0], labels[:0])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_calibration_equals_scikit_learn_and_torchmetrics(temperature: float) -> None:
    logits, labels = sample()
    scores = torch.softmax(logits.double() / temperature, dim=1)
    found = calibration(logits, labels, temperature)
    assert found["nll"] == pytest.approx(log_loss(labels.numpy(), scores.numpy()), rel=1e-9)
    expected = brier_score_loss(labels.numpy(), scores.numpy(), scale_by_half=False)
    assert found["brier"] == pytest.approx(expected, rel=1e-9)
    ece = multiclass_calibration_error(scores, labels, CLASSES, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(ece), abs=1e-6)
    confidence, hit = scores.amax(dim=1).numpy(), (scores.argmax(dim=1) == labels).numpy()
    order = np.argsort(confidence)
    # Without ties the bins are runs of the sorted samples, longest first or as numbers fall: ends at ⌈b N/15⌉.
    ends = [-(-b * len(order) // 15) for b in range(16)]
    parts = [order[a:b] for a, b in itertools.pairwise(ends)]
    mass = sum(len(p) * abs(hit[p].mean() - confidence[p].mean()) for p in parts) / len(order)
    assert found["ece_mass"] == pytest.approx(mass, rel=1e-9)


def test_equal_confidences_share_a_bin() -> None:
    confidence, hit = np.full(100, 0.8), np.arange(100) < 80
    assert mass_calibration_error(confidence, hit) == pytest.approx(0, abs=1e-12)


def test_halves_are_disjoint_and_a_function_of_the_seed() -> None:
    first, second = split_halves(101, 3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    assert len(first) == 50
    assert split_halves(101, 3)[0].equal(first)
    assert not split_halves(101, 4)[0].equal(first)


def test_scores_are_what_they_are_called() -> None:
    logits, _ = sample(200)
    found = confidence_scores(logits)
    top = np.sort(logits.double().numpy(), axis=1)
    np.testing.assert_allclose(found["logit"], top[:, -1])
    np.testing.assert_allclose(found["margin"], top[:, -1] - top[:, -2])
    # The log odds of the largest probability, which have its order and do not round to 1.
    probability = torch.softmax(logits.double(), dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-found["probability"])), probability, rtol=1e-12)


def brute_force(order: np.ndarray, correct: np.ndarray) -> list[float]:
    """Risk among the first 1, 2, … samples of `order`."""
    return [float(np.mean([not correct[j] for j in order[: i + 1]])) for i in range(len(order))]


def test_selective_prediction_equals_brute_force() -> None:
    random = np.random.default_rng(1)
    score, correct = random.normal(size=300), random.random(300) < 0.8
    found = selective(score, correct)
    risks = brute_force(np.argsort(-score), correct)
    assert found["aurc"] == pytest.approx(np.mean(risks), rel=1e-12)
    best = brute_force(np.argsort(~correct, kind="stable"), correct)
    assert found["excess_aurc"] == pytest.approx(np.mean(risks) - np.mean(best), rel=1e-12)
    for level, coverage in found["coverage_at_risk"].items():
        expected = max((i + 1 for i, risk in enumerate(risks) if risk <= float(level)), default=0) / 300
        assert coverage == expected
    assert found["curve"]["coverage"][-1] == 1
    assert found["curve"]["risk"] == pytest.approx([risks[round(c * 300) - 1] for c in found["curve"]["coverage"]])
    perfect = selective(correct.astype(float) + 1e-3 * random.random(300), correct)
    assert perfect["excess_aurc"] == pytest.approx(0, abs=1e-12)


def test_equal_scores_come_in_every_order() -> None:
    score = np.array([3.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    correct = np.array([True, False, True, True, False, True])
    tied = [(1, 2, 3), (4, 5)]
    means = [
        np.mean(brute_force(np.array([0, *a, *b]), correct))
        for a in itertools.permutations(tied[0])
        for b in itertools.permutations(tied[1])
    ]
    found = selective(score, correct)
    assert found["aurc"] == pytest.approx(np.mean(means), rel=1e-12)
    # No threshold tells the tied ones apart.
    assert found["coverage_at_risk"]["0.05"] == pytest.approx(1 / 6)


def test_groups_are_means_over_classes_of_a_tail() -> None:
    counts = [500, 101, 100, 20, 19, 1, 0, 7]
    labels = np.array([0] * 10 + [1] * 2 + [2] * 4 + [3] * 4 + [4] * 2 + [5] * 2 + [6])
    correct = np.array([1] * 9 + [0] + [1, 0] + [1, 1, 1, 0] + [1, 0, 0, 0] + [0, 0] + [1, 0] + [0], bool)
    found = group_accuracy(correct, labels, counts)
    assert found["groups"] == {
        "many": {"classes": 2, "accuracy": pytest.approx((0.9 + 0.5) / 2)},
        "medium": {"classes": 2, "accuracy": pytest.approx((0.75 + 0.25) / 2)},
        "few": {"classes": 2, "accuracy": pytest.approx(0.25)},
        "unseen": {"classes": 1, "accuracy": 0.0},
    }
    assert found["classes"][3] == {"label": 3, "train": 20, "test": 4, "accuracy": 0.25}
    assert found["classes"][7] == {"label": 7, "train": 7, "test": 0, "accuracy": None}
    other = group_accuracy(correct, labels, counts, many_over=50, few_under=5)
    assert [other["groups"][name]["classes"] for name in ("many", "medium", "few")] == [3, 2, 1]


@pytest.mark.parametrize("digits", [12, 1])  # without ties and with many
@pytest.mark.parametrize("counts", [(400, 300), (7, 2), (1, 1)])
def test_detection_equals_scikit_learn(digits: int, counts: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    inside, outside = random.normal(1, 1, counts[0]).round(digits), random.normal(0, 1, counts[1]).round(digits)
    labels, scores = np.repeat([1, 0], counts), np.concatenate([inside, outside])
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert detection(inside, outside) == {
        "auroc": pytest.approx(roc_auc_score(labels, scores)),
        "fpr_95": pytest.approx(false[np.argmax(true >= 0.95)]),
        "aupr_in": pytest.approx(average_precision_score(labels, scores)),
        "aupr_out": pytest.approx(average_precision_score(1 - labels, -scores)),
    }


def test_energy_and_neighbours_are_what_they_are_called() -> None:
    logits, _ = sample(100)
    np.testing.assert_allclose(energy(logits), np.log(np.exp(logits.double().numpy()).sum(axis=1)))
    random = np.random.default_rng(3)
    bank, queries = (random.normal(size=(n, 9)).astype(np.float32) for n in (80, 30))
    distances = NearestNeighbors(n_neighbors=6).fit(normalize(bank)).kneighbors(normalize(queries))[0][:, -1]
    found = nearest_similarity(torch.from_numpy(queries), torch.from_numpy(bank), 6)
    np.testing.assert_allclose(np.sqrt(2 - 2 * found), distances, rtol=1e-5)
    with pytest.raises(ValueError, match="there are 80 samples, fewer than k=81"):
        nearest_similarity(torch.from_numpy(queries), torch.from_numpy(bank), 81)


def test_the_mean_corruption_error_is_the_mean_of_ratios() -> None:
    def like(factor: float) -> dict:
        return {
            name: [{"top_1": 1 - factor * error * (0.8 + 0.1 * s), "nll": 1.0 + s, "ece": 0.1} for s in range(5)]
            for name, error in ALEXNET.items()
        }

    found = summarise_corruptions(like(0.5), imagenet=True)
    assert found["mce"] == pytest.approx(0.5)
    assert found["mean"]["error"] == pytest.approx(0.5 * np.mean(list(ALEXNET.values())))
    assert [one["nll"] for one in found["by_severity"]] == [1, 2, 3, 4, 5]
    assert summarise_corruptions(like(0.5), imagenet=False)["mce"] is None
    some = {name: rows for name, rows in like(0.5).items() if name != "fog"}
    assert summarise_corruptions(some, imagenet=True)["mce"] is None
