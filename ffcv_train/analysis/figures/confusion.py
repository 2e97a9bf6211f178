"""The confusion matrix, readable from two classes to thousands."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ffcv_train.analysis.figures.gradcam import shorten
from ffcv_train.analysis.figures.style import DENSITY
from ffcv_train.analysis.figures.tables import markdown_table
from ffcv_train.metrics.per_class import ClassResults

NAMED = 30
"""Classes whose names and numbers a matrix has room for"""
_BLOCKS = 100
_MOST_ORDERED = 4096
PAIRS = 20
_LEAST = 0.5  # percent that a cell shows: less would be written 0


def draw_confusion(results: ClassResults) -> Figure:
    """The matrix of all classes with names and percentages; of more than `NAMED`, two panels.

    The left one then has the errors of all classes, in an order that puts together what is taken for each other, in at
    most 100 × 100 blocks; the right one the classes of the most frequent errors, with names.
    """
    count = len(results.names)
    if count <= NAMED:
        side = max(3.2, 0.42 * count + 1.8)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        _draw_named(figure.subplots(), results, range(count), "")
        return figure
    figure = Figure(figsize=(15.5, 8.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_blocks(figure, left, results)
    chosen: dict[int, None] = {}
    for true, other, _, _ in results.worst_pairs(count):
        if len(chosen.keys() | {true, other}) <= NAMED:
            chosen |= dict.fromkeys((true, other))
    if chosen:
        _draw_named(right, results, _similar_together(results, sorted(chosen)), "classes of the most frequent errors")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "no errors", ha="center")
    return figure


def pairs_table(results: ClassResults, most: int = PAIRS) -> str:
    """The most frequent errors in Markdown."""
    rows = [
        [results.names[true], results.names[other], f"{count:,}", f"{share:.1%}"]
        for true, other, count, share in results.worst_pairs(most)
    ]
    return markdown_table(["class", "taken for", "images", "share of the class"], rows)


def classes_table(results: ClassResults, labels: Sequence[int]) -> str:
    """Classes in Markdown."""
    rows = results.rows()

    def cells(row: dict[str, object]) -> list[str]:
        shares = [row[key] for key in ("recall", "top_5", "precision", "f1", "mean_confidence")]
        return [
            str(row["class"]),
            f"{row['count']:,}",
            *("–" if share != share else f"{share:.1%}" for share in shares),
        ]

    header = ["class", "images", "recall", "top-5", "precision", "F1", "mean confidence"]
    return markdown_table(header, [cells(rows[label]) for label in labels])


def _draw_named(axes: Axes, results: ClassResults, classes: Sequence[int], title: str) -> None:
    matrix = 100 * results.matrix(classes)
    axes.imshow(np.ma.masked_less(matrix, _LEAST), cmap=DENSITY, vmin=0, vmax=100)
    names = [shorten(results.names[label], 22) for label in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(f"{title}\n% of the row's images" if title else "% of the row's images", fontsize=10)
    for row, column in np.argwhere(matrix >= _LEAST):
        color = "white" if matrix[row, column] > 50 else "black"
        axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color)


def _draw_blocks(figure: Figure, axes: Axes, results: ClassResults) -> None:
    count = len(results.names)
    order = _similar_together(results, range(count))
    size = -(-count // _BLOCKS)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count) // size
    blocks = -(-count // size)
    errors = np.zeros((blocks, blocks))
    np.add.at(errors, tuple(place[results.confusions[:, :2]].T), results.confusions[:, 2])
    picture = axes.imshow(
        np.ma.masked_equal(errors, 0), cmap=DENSITY, norm=LogNorm(1, max(2.0, errors.max())), interpolation="none"
    )
    figure.colorbar(picture, ax=axes, label="errors", shrink=0.6)
    each = f"a cell is {size} × {size} classes" if size > 1 else "a cell is a pair of classes"
    axes.set_title(f"errors among all {count:,} classes, similar ones together\n{each}", fontsize=10)
    axes.set(xticks=[], yticks=[], xlabel="taken for", ylabel="class")


def _similar_together(results: ClassResults, classes: Sequence[int]) -> list[int]:
    """`classes` in the order of the leaves of a tree that joins first what is most often taken for each other.

    As they are where they are so many that the tree would take minutes.
    """
    if not 3 <= len(classes) <= _MOST_ORDERED:
        return list(classes)
    matrix = results.matrix(classes)
    alike = matrix + matrix.T
    distance = 1 - alike / max(alike.max(), 1e-12)
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average"))
    return [list(classes)[place] for place in order]
