"""What evaluation says of each class, and which classes it takes for which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffcv_train.metrics.classification import TOP_K


class SampleResults:
    """The likeliest class of every sample of a data set, filled batch by batch, on any rank.

    As `MetricSums`, logits rank by value, equal ones by class, and confidence is the largest probability of softmax in
    float64. No method but `compute` waits for the device.
    """

    def __init__(self, num_samples: int, device: torch.device | str = "cpu") -> None:
        # [predicted class, whether the label is among the first five] and [confidence]; each sample is one rank's.
        self._integers = torch.zeros(2, num_samples, dtype=torch.int64, device=device)
        self._confidence = torch.zeros(num_samples, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch: logits [B, K], labels and places in the data set int64 [B], on this object's device."""
        own = logits.gather(1, labels[:, None])
        classes = torch.arange(logits.shape[1], device=logits.device)
        ahead = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
        self._integers[0, indices] = logits.argmax(1)
        self._integers[1, indices] = (ahead.sum(1) < min(TOP_K, logits.shape[1])).long()
        self._confidence[indices] = torch.softmax(logits.double(), dim=1).amax(1)

    def reduce(self, all_reduce: Callable[[Tensor], Any]) -> "SampleResults":
        """Gather the ranks' samples and return self; `all_reduce(tensor)` sums a tensor over ranks in place."""
        all_reduce(self._integers)
        all_reduce(self._confidence)
        return self

    def compute(self, labels: np.ndarray, num_classes: int, names: Sequence[str] | None) -> "ClassResults":
        """The results by class, of the samples' true `labels`, int64 [N]."""
        predicted, hits_5 = self._integers.cpu().numpy()
        confidence = self._confidence.cpu().numpy()
        pairs, counts = np.unique(labels * num_classes + predicted, return_counts=True)
        wrong = pairs // num_classes != pairs % num_classes

        def by_class(values: np.ndarray | None, of: np.ndarray = labels) -> np.ndarray:
            return np.bincount(of, values, num_classes)

        return ClassResults(
            tuple(names) if names is not None else tuple(map(str, range(num_classes))),
            by_class(None),
            by_class(None, predicted),
            by_class((predicted == labels).astype(np.float64)).astype(np.int64),
            by_class(hits_5.astype(np.float64)).astype(np.int64),
            by_class(confidence),
            np.stack([pairs // num_classes, pairs % num_classes, counts], 1)[wrong],
        )


@dataclass(frozen=True, eq=False)
class ClassResults:
    """An entry per class; shares are NaN where their denominator is 0."""

    names: tuple[str, ...]
    counts: np.ndarray
    """int64 [K], samples of the class"""
    predicted: np.ndarray
    """int64 [K], samples that are taken for it"""
    hits: np.ndarray
    """int64 [K], samples of the class that are taken for it"""
    hits_5: np.ndarray
    """int64 [K], samples of the class that have it among the first five"""
    confidences: np.ndarray
    """float64 [K], sum of the confidences of the class's samples"""
    confusions: np.ndarray
    """int64 [M, 3]: true class, class it is taken for, how often; errors only"""

    @property
    def recall(self) -> np.ndarray:
        """The class's top-1 accuracy."""
        return _share(self.hits, self.counts)

    @property
    def top_5(self) -> np.ndarray:
        return _share(self.hits_5, self.counts)

    @property
    def precision(self) -> np.ndarray:
        return _share(self.hits, self.predicted)

    @property
    def f1(self) -> np.ndarray:
        return _share(2 * self.hits, self.counts + self.predicted)

    @property
    def mean_confidence(self) -> np.ndarray:
        return _share(self.confidences, self.counts)

    def worst_pairs(self, most: int) -> list[tuple[int, int, int, float]]:
        """(true class, class it is taken for, how often, share of the true class), the most frequent first."""
        true, other, count = self.confusions.T
        order = np.lexsort((other, true, -count))[:most]
        return [(int(true[i]), int(other[i]), int(count[i]), float(count[i] / self.counts[true[i]])) for i in order]

    def worst_classes(self, most: int) -> list[int]:
        """Labels of the classes of lowest recall that have samples, the lowest first."""
        present = np.flatnonzero(self.counts)
        return present[np.argsort(self.recall[present], kind="stable")][:most].tolist()

    def matrix(self, classes: Sequence[int]) -> np.ndarray:
        """float64 [C, C]: of the samples of each of `classes`, the share that is taken for each of them."""
        place = np.full(len(self.names), -1)
        place[list(classes)] = np.arange(len(classes))
        matrix = np.zeros((len(classes), len(classes)))
        for true, other, count in self.confusions[(place[self.confusions[:, :2]] >= 0).all(1)]:
            matrix[place[true], place[other]] = count
        matrix[np.diag_indices(len(classes))] = self.hits[list(classes)]
        return matrix / np.maximum(self.counts[list(classes)], 1)[:, None]

    def rows(self) -> list[dict[str, Any]]:
        """A record per class, in label order."""
        columns = {
            "label": range(len(self.names)),
            "class": self.names,
            "count": self.counts.tolist(),
            "predicted": self.predicted.tolist(),
            "recall": self.recall.tolist(),
            "top_5": self.top_5.tolist(),
            "precision": self.precision.tolist(),
            "f1": self.f1.tolist(),
            "mean_confidence": self.mean_confidence.tolist(),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def plain(self) -> dict[str, Any]:
        """As JSON can say it; `from_plain` reads it."""
        return {key: list(value) if key == "names" else value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "ClassResults":
        """The inverse of `plain`. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        names = tuple(map(str, content["names"]))
        tables = {key: np.array(content[key], np.int64) for key in ("counts", "predicted", "hits", "hits_5")}
        confidences = np.array(content["confidences"], np.float64)
        confusions = np.array(content["confusions"], np.int64).reshape(-1, 3)
        if any(table.shape != (len(names),) for table in (*tables.values(), confidences)):
            raise ValueError("columns of different lengths")
        if confusions.size and not (confusions[:, :2] >= 0).all() & (confusions[:, :2] < len(names)).all():
            raise ValueError("a confusion of unknown classes")
        return cls(names, **tables, confidences=confidences, confusions=confusions)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
