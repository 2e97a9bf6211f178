"""Accuracy by how often classes were seen in training (Liu et al., arXiv:1904.05160)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MANY_OVER = 100
FEW_UNDER = 20


def group_accuracy(
    correct: np.ndarray,
    labels: np.ndarray,
    train_counts: Sequence[int],
    *,
    many_over: int = MANY_OVER,
    few_under: int = FEW_UNDER,
) -> dict[str, Any]:
    """Accuracy per class, and its mean over the many-, medium- and few-shot classes.

    `correct` bool [N], `labels` int64 [N] of the test set; `train_counts` [K], training samples of each class: more
    than `many_over` are many, fewer than `few_under` few, 0 `unseen`. `groups` has `classes`, those that have test
    samples, and `accuracy`, a mean over these classes, None without any; `classes` a record per class.
    """
    counts = np.asarray(train_counts)
    tested = np.bincount(labels, minlength=len(counts))
    hits = np.bincount(labels, correct, len(counts))
    accuracy = hits / np.maximum(tested, 1)
    members = {
        "many": counts > many_over,
        "medium": (counts <= many_over) & (counts >= few_under) & (counts > 0),
        "few": (counts < few_under) & (counts <= many_over) & (counts > 0),
        "unseen": counts == 0,
    }
    groups = {}
    for name, chosen in members.items():
        with_tests = chosen & (tested > 0)
        number = int(with_tests.sum())
        groups[name] = {"classes": number, "accuracy": float(accuracy[with_tests].mean()) if number else None}
    classes = [
        {
            "label": label,
            "train": int(counts[label]),
            "test": int(tested[label]),
            "accuracy": float(accuracy[label]) if tested[label] else None,
        }
        for label in range(len(counts))
    ]
    return {"many_over": many_over, "few_under": few_under, "groups": groups, "classes": classes}
