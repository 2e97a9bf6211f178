"""The plane of three templates, and the choice of triples."""

import itertools

import numpy as np
import pytest
import torch

from ffcv_train.metrics.projection import (
    confusion_rates,
    sample_classes,
    strongest_triple,
    template_plane,
    template_similarity,
)


def test_the_plane_keeps_distances_and_orientation() -> None:
    generator = torch.Generator().manual_seed(0)
    templates = torch.randn(3, 20, generator=generator)
    plane = template_plane(templates)
    torch.testing.assert_close(plane.basis.T @ plane.basis, torch.eye(2, dtype=torch.float64))
    a, b, c = plane.project(templates)
    # The templates lie in the plane: their distances are those in 20 dimensions.
    for (x, p), (y, q) in itertools.combinations(zip(templates.double(), (a, b, c), strict=True), 2):
        torch.testing.assert_close((x - y).norm(), (p - q).norm())
    assert abs(float(a[0])) < 1e-9
    assert float(a[1]) > 0
    assert float(b[0]) < 0 < float(c[0])


def test_a_point_is_projected_at_right_angles() -> None:
    plane = template_plane(torch.tensor([[0.0, 2, 7], [-1, -1, 7], [1, -1, 7]]))
    torch.testing.assert_close(
        plane.project(torch.tensor([[3.0, 4, -50]])), torch.tensor([[3.0, 4]], dtype=torch.float64)
    )


def test_orientation_does_not_depend_on_the_network() -> None:
    generator = torch.Generator().manual_seed(1)
    templates = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    points = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    same = template_plane(templates).project(points)
    turned = template_plane(templates @ turn + 4).project(points @ turn + 4)
    torch.testing.assert_close(same, turned)


@pytest.mark.parametrize("templates", [torch.zeros(3, 4), torch.tensor([[0.0, 0], [1, 1], [2, 2]]), torch.ones(3, 4)])
def test_templates_on_a_line_are_refused(templates: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one line"):
        template_plane(templates)


def test_samples_are_drawn_alike_for_files_of_one_data_set() -> None:
    labels = torch.arange(1000) % 5
    first, again = (sample_classes(labels, (4, 1), 80) for _ in range(2))
    for label, a, b in zip((4, 1), first, again, strict=True):
        assert torch.equal(a, b)
        assert (labels[a] == label).all()
        assert len(a.unique()) == 80
    assert not torch.equal(sample_classes(labels, (4,), 80, seed=1)[0], first[0])
    assert torch.equal(sample_classes(labels, (1, 4), 80)[1], first[0])  # whatever the other classes are
    assert torch.equal(sample_classes(labels[:10], (2,), 80)[0], torch.tensor([2, 7]))
    assert len(sample_classes(labels[:10], (9,), 80)[0]) == 0


def test_similarity_ignores_what_all_templates_share() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    found = template_similarity(weight)
    torch.testing.assert_close(found, template_similarity(3 * (weight + torch.arange(9))))
    centred = (weight - weight.mean(dim=0)).numpy()
    expected = centred @ centred.T / np.outer(np.linalg.norm(centred, axis=1), np.linalg.norm(centred, axis=1))
    np.testing.assert_allclose(found, expected)


def test_confusion_counts_both_ways_by_class_size() -> None:
    # Class 0: 4 samples, 1 taken for class 1. Class 1: 2 samples, 1 taken for class 0. Class 2: none.
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 0, 1]), 3).float()
    found = confusion_rates(logits, labels)
    assert found[0, 1] == found[1, 0] == pytest.approx(1 / 4 + 1 / 2)
    assert found.sum() == pytest.approx(1.5)
    assert not found.diagonal().any()


@pytest.mark.parametrize("seed", range(4))
def test_the_triple_is_the_best_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    affinity = torch.randn(9, 9, generator=generator)
    affinity = affinity + affinity.T
    candidates = [7, 0, 2, 3, 5, 8]

    def total(triple: tuple[int, ...]) -> float:
        return sum(float(affinity[a, b]) for a, b in itertools.combinations(triple, 2))

    ranked = sorted(itertools.combinations(sorted(candidates), 3), key=total, reverse=True)
    best = strongest_triple(affinity, candidates)
    assert best == ranked[0]
    assert strongest_triple(affinity, candidates, excluded=best) == ranked[1]


def test_too_few_classes() -> None:
    with pytest.raises(ValueError, match="fewer than three"):
        strongest_triple(torch.zeros(5, 5), [1, 2])
    with pytest.raises(ValueError, match="fewer than three"):
        strongest_triple(torch.zeros(5, 5), [1, 2, 3], excluded=(1, 2, 3))
    assert strongest_triple(torch.zeros(5, 5), range(5)) == (0, 1, 2)
