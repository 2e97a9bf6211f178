"""Penultimate features on the plane of three class templates (Müller et al., arXiv:1906.02629).

The template of class k is row k of the last layer's weight. Three of them span a plane; the features of the three
classes' samples are projected on it at right angles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffcv_train.metrics.logits_file import row_blocks

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Plane:
    """An orthonormal basis of the plane through three templates."""

    origin: Tensor
    """float64 [D]: the templates' mean"""
    basis: Tensor
    """float64 [D, 2]: the first template lies in the direction (0, 1) from the origin, the second left of it"""

    def project(self, points: Tensor) -> Tensor:
        """Coordinates on the plane, float64 [n, 2], of points [n, D]."""
        return (points.double() - self.origin) @ self.basis


def template_plane(templates: Tensor) -> Plane:
    """The plane through three templates [3, D], D ≥ 2. Raises `ValueError` where they lie on one line.

    The basis is turned and mirrored so that planes of different networks look alike: the first template is above
    the origin, the second on the left.
    """
    templates = templates.double()
    origin = templates.mean(dim=0)
    sides = templates - origin
    up = sides[0]
    scale = float(sides.norm())
    if float(up.norm()) <= 1e-9 * scale or not np.isfinite(scale) or scale == 0:
        raise ValueError("the three class templates lie on one line")
    up = up / up.norm()
    across = sides[2] - (sides[2] @ up) * up
    if float(across.norm()) <= 1e-9 * scale:
        raise ValueError("the three class templates lie on one line")
    return Plane(origin, torch.stack([across / across.norm(), up], dim=1))


def sample_classes(labels: Tensor, classes: Sequence[int], per_class: int, seed: int = 0) -> list[Tensor]:
    """Positions, int64 and increasing, of `per_class` samples of each class; all of them where there are fewer.

    Drawn without replacement from (seed, class), so that files of one data set give the same samples.
    """
    chosen = []
    for label in classes:
        found = (labels == label).nonzero().flatten().numpy()
        generator = np.random.default_rng([seed, label])
        if len(found) > per_class:
            found = np.sort(generator.choice(found, per_class, replace=False))
        chosen.append(torch.from_numpy(found))
    return chosen


def template_similarity(weight: Tensor) -> Tensor:
    """Cosine similarity float64 [K, K] of class templates [K, D] after subtracting their mean.

    Softmax does not see a vector that is common to all templates.
    """
    centred = weight.double() - weight.double().mean(dim=0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    return unit @ unit.T


def confusion_rates(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [K, K]: the share of class i's samples predicted as j, plus the share of j's predicted as i; 0 if i = j.

    `logits` [N, K], `labels` int64 [N]. A class without samples has the share 0.
    """
    classes = logits.shape[1]
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    for rows in row_blocks(len(labels), classes):
        y = labels[rows]
        counts.view(-1).index_add_(0, y * classes + logits[rows].argmax(dim=1), torch.ones(len(y), dtype=torch.float64))
    rates = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    rates.fill_diagonal_(0)
    return rates + rates.T


def strongest_triple(affinity: Tensor, candidates: Sequence[int], excluded: Triple | None = None) -> Triple:
    """The three classes among `candidates` whose pairs' affinities sum highest, in increasing order.

    `affinity` is symmetric [K, K]; ties go to the lower classes; the set `excluded` is passed over. Raises
    `ValueError` where no triple is left. Takes O(n³) operations and O(n²) memory for n candidates: 1 s for 1,000.
    """
    index = torch.as_tensor(sorted(candidates))
    s = affinity.double()[index][:, index]
    n = len(index)
    banned = None if excluded is None else tuple(int((index == c).nonzero()[0]) for c in sorted(excluded))
    best, found = -np.inf, None
    for a in range(n - 2):
        # total[b, c] of the classes after a; b < c.
        row = s[a, a + 1 :]
        total = s[a + 1 :, a + 1 :] + row[:, None] + row[None, :]
        total = total.masked_fill(torch.ones_like(total, dtype=torch.bool).tril(), -np.inf)
        if banned is not None and banned[0] == a:
            total[banned[1] - a - 1, banned[2] - a - 1] = -np.inf
        highest = float(total.max())
        if highest > best:
            b, c = divmod(int(total.argmax()), n - a - 1)
            best, found = highest, (a, a + 1 + b, a + 1 + c)
    if found is None:
        raise ValueError("fewer than three classes to choose from")
    first, second, third = (int(index[i]) for i in found)
    return first, second, third
