"""A part of a source: a split that is kept for validation, or a long tail. Every choice is a function of the seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ffcv_train.data.sources.archives import Blob, ZipBlob
from ffcv_train.data.sources.source import Place, Source

_SPLIT, _TAIL = 1, 2  # streams of random numbers that do not meet
_END_BYTES = 4096


class Selection(Source):
    """The samples `indices` of `source`, in this order, with all its classes."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, notes: Sequence[str] = ()) -> None:
        self.origin = source
        self._indices = np.asarray(indices, np.int64)
        super().__init__(source.class_names, source.labels[self._indices], notes, source.named)

    def name(self, index: int) -> str:
        return self.origin.name(int(self._indices[index]))

    def place(self, index: int) -> Place:
        return self.origin.place(int(self._indices[index]))


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, same: Iterable[Sequence[int]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples that are kept for training, and of those for validation, in ascending order.

    Of each class, `fraction` is for validation, rounded, but at least one sample and never the last one; a class of one
    sample is for training. Samples of each sequence of `same`, copies of one image, stay on one side. `labels` int64
    [N].
    """
    leader = np.arange(len(labels))
    copies: dict[int, Sequence[int]] = {}
    for group in same:
        copies[min(group)] = group
        leader[list(group)] = min(group)
    validation = np.zeros(len(labels), bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        wanted = min(max(round(fraction * len(members)), 1), len(members) - 1)
        taken = int(validation[members].sum())  # copies of another class's images
        candidates = np.unique(leader[members])
        for first in np.random.default_rng((seed, _SPLIT, label)).permutation(candidates).tolist():
            if taken >= wanted:
                break
            group = copies.get(first, (first,))
            here = int((labels[list(group)] == label).sum())
            # The class that an image's first copy is of decides for all.
            if labels[first] == label and taken + here <= wanted:
                validation[list(group)] = True
                taken += here
    return np.flatnonzero(~validation), np.flatnonzero(validation)


def long_tail(labels: np.ndarray, num_classes: int, imbalance: float, seed: int) -> np.ndarray:
    """Indices, ascending, of a set whose classes shrink exponentially: of class k of C, n · imbalance^(−k / (C − 1)).

    n is the size of the largest class, and what a class does not have is not taken; rounded down, at least one sample
    of each class that has any. Cao et al., arXiv:1906.07413, whose classes shrink in the order of labels too. `labels`
    int64 [N].
    """
    counts = np.bincount(labels, minlength=num_classes)
    kept = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        share = imbalance ** (-label / max(num_classes - 1, 1))
        # A product such as 5000 · 0.01^(1/2) is a hair below the whole number that it is.
        count = min(len(members), max(1, int(counts.max() * share + 1e-6)))
        kept.append(np.random.default_rng((seed, _TAIL, label)).permutation(members)[:count])
    return np.sort(np.concatenate(kept))


def copies_of_images(source: Source) -> list[list[int]]:
    """Samples of `source` whose image files are equal, byte for byte; only what is as long and ends alike is read."""
    groups = [list(range(len(source)))]
    for key in (_size, _end, _content):
        groups = [part for group in groups for part in _parted(source, group, key)]
    return groups


def _parted(source: Source, group: list[int], key: Callable[[Place], object]) -> list[list[int]]:
    """The samples of `group` that have a `key` in common with another one, by key."""
    by_key: dict[object, list[int]] = defaultdict(list)
    for index in group:
        place = source.place(index)
        try:
            by_key[key(place)].append(index)
        except OSError:
            continue  # it is refused when it is converted
    return [part for part in by_key.values() if len(part) > 1]


def _size(place: Place) -> object:
    if isinstance(place, ZipBlob):
        return place.full_size, place.crc
    if isinstance(place, Blob):
        return place.size if place.size >= 0 else place.file_size()
    return place.shape


def _end(place: Place) -> object:
    if not isinstance(place, Blob):
        return 0
    size = place.size if place.size >= 0 else place.file_size()
    length = min(size, _END_BYTES)
    return Blob(place.path, place.offset + size - length, length).read()


def _content(place: Place) -> object:
    content = place.read() if isinstance(place, Blob | ZipBlob) else np.ascontiguousarray(place).data
    return hashlib.sha256(content).digest()


def describe_counts(labels: np.ndarray, class_names: Sequence[str]) -> str:
    """How many samples the largest and the smallest class have."""
    counts = Counter(labels.tolist())
    (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
    return f"{most} of {class_names[largest]} to {least} of {class_names[smallest]}"
