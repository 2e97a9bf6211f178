"""Choosing triples of classes, and drawing their features on the planes of their templates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from ffcv_train.analysis.figures.inputs import Input
from ffcv_train.analysis.figures.style import check_input_count, tidy_axes
from ffcv_train.metrics.projection import (
    Triple,
    confusion_rates,
    sample_classes,
    strongest_triple,
    template_plane,
    template_similarity,
)
from ffcv_train.system.class_names import label_called
from ffcv_train.system.errors import UserError

SAMPLES = 80
"""Per class, as in the MaxSup paper's figures"""
# Colour, marker and fill: told apart in greyscale by shape and by being open.
_MARKS = (("#0072B2", "o", "#0072B2"), ("#D55E00", "s", "none"), ("#000000", "^", "#000000"))


@dataclass(frozen=True)
class Choice:
    """Three classes and why they were chosen; no reason where the user named them."""

    triple: Triple
    reason: str


def parse_classes(words: Sequence[str], inputs: Sequence[Input], names: tuple[str, ...] | None) -> Choice:
    """The classes that the user named, by name or label. Raises `UserError` for what is not among them."""
    count = inputs[0].file.num_classes
    labels = []
    for word in words:
        label = label_called(names, word) if names is not None else None
        if label is not None:
            labels.append(label)
        elif word.isdecimal() and int(word) < count:
            labels.append(int(word))
        else:
            raise UserError(f"--classes {word} is no class of {inputs[0].file.path}; give {_known(names, count)}")
    if len(set(labels)) < 3:
        raise UserError(f"--classes {' '.join(words)} names a class twice; give three different ones")
    first, second, third = labels
    return Choice((first, second, third), "")


def choose_classes(inputs: Sequence[Input]) -> list[Choice]:
    """A similar and a confused triple among the classes that have samples in every input.

    Similar: the templates' cosine similarities, averaged over the inputs, sum highest. Confused: the pairwise
    confusion rates, averaged over the inputs, sum highest; another triple than the similar one where there is another.
    Raises `UserError` where fewer than three classes have samples.
    """
    count = inputs[0].file.num_classes
    present = np.ones(count, dtype=bool)
    for one in inputs:
        present &= np.bincount(one.file.labels.numpy(), minlength=count) > 0
    candidates = np.flatnonzero(present).tolist()
    if len(candidates) < 3:
        raise UserError(
            f"a plane needs three classes, and {len(candidates)} of {count} have samples in every input; "
            "give files of a larger data set"
        )
    similarity = torch.stack([template_similarity(one.file.need_weight()) for one in inputs]).mean(dim=0)
    confusion = torch.stack([confusion_rates(one.file.logits, one.file.labels) for one in inputs]).mean(dim=0)
    similar = strongest_triple(similarity, candidates)
    choices = [Choice(similar, "most similar templates")]
    if len(candidates) > 3:
        choices.append(Choice(strongest_triple(confusion, candidates, excluded=similar), "most often confused"))
    return choices


def project(one: Input, triple: Triple, per_class: int, seed: int) -> list[np.ndarray]:
    """float64 [n, 2] for each class: its samples on the plane of the three templates. Raises `UserError`."""
    features, weight = one.file.need_features(), one.file.need_weight()
    try:
        plane = template_plane(weight[list(triple)])
    except ValueError as error:
        raise UserError(f"{error} in {one.file.path}; choose other classes with --classes") from None
    positions = sample_classes(one.file.labels, triple, per_class, seed)
    for label, found in zip(triple, positions, strict=True):
        if not len(found):
            raise UserError(f"{one.file.path} has no sample of class {label}; choose other classes with --classes")
    return [plane.project(features[found]).numpy() for found in positions]


def draw_projections(
    labels: Sequence[str],
    choices: Sequence[Choice],
    points: Sequence[Sequence[Sequence[np.ndarray]]],
    names: tuple[str, ...] | None,
    own_axes: bool = False,
) -> Figure:
    """A row per choice, a column per input; `points[row][column]` is what `project` gave.

    The axes of a row are shared unless `own_axes`. Raises `UserError` for too many inputs.
    """
    check_input_count(len(labels))
    rows, columns = len(choices), len(labels)
    figure = Figure(figsize=(max(3.0 * columns + 0.4, 4.4), 3.3 * rows + 0.3), layout="constrained")
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, choice, line in zip(parts, choices, points, strict=True):
        panels = part.subplots(1, columns, squeeze=False, sharex=not own_axes, sharey=not own_axes)[0]
        shared = _square(np.concatenate([cloud for clouds in line for cloud in clouds]))
        for axes, label, clouds in zip(panels, labels, line, strict=True):
            for cloud, (color, marker, face) in zip(clouds, _MARKS, strict=True):
                axes.scatter(
                    *cloud.T, s=14, marker=marker, edgecolors=color, facecolors=face, alpha=0.7, linewidths=0.8
                )
            x, y = _square(np.concatenate(clouds)) if own_axes else shared
            axes.set(xlim=x, ylim=y, aspect="equal")
            tidy_axes(axes)
            if line is points[0]:
                axes.set_title(label, fontsize=10)
        handles = [
            panels[0].scatter(
                [], [], s=24, marker=marker, edgecolors=color, facecolors=face, label=class_text(one, names)
            )
            for one, (color, marker, face) in zip(choice.triple, _MARKS, strict=True)
        ]
        part.legend(
            handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, title=choice.reason or None
        )
    return figure


def _square(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of equal length in x and y around points [n, 2]."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * max(float((high - low).max()), 1e-6)
    (x, y) = middle
    return (x - half, x + half), (y - half, y + half)


def class_text(label: int, names: tuple[str, ...] | None) -> str:
    """A class's name, shortened; its number where it has none."""
    if names is None:
        return f"class {label}"
    return names[label] if len(names[label]) <= 24 else names[label][:23] + "…"


def _known(names: tuple[str, ...] | None, count: int) -> str:
    labels = f"a label from 0 to {count - 1}"
    if names is None:
        return labels + "; the file holds no class names"
    return f"{labels} or a name such as {', '.join(names[:5])}"
