"""Figures of logits: near-zero share, and distributions of max logit, norm and margin; a column per input."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

from ffcv_train.analysis.figures.style import DENSITY, RIGHT, STYLES, WRONG, check_input_count, tidy_axes
from ffcv_train.analysis.figures.tables import markdown_table
from ffcv_train.metrics.logits import LogitStatistics

_BINS = 50
Named = tuple[str, LogitStatistics]


def share_edges(statistics: Sequence[LogitStatistics], bins: int = _BINS) -> np.ndarray:
    """Edges of bins for the near-zero shares of all inputs together: float64, increasing.

    A share is a multiple of 1/K. The bins have one width, a whole number of such steps, and each is centred on the
    multiples that it holds, so that none is empty for want of values.
    """
    classes = statistics[0].num_classes
    highest = max(float(s.near_zero.max()) for s in statistics)
    values = round(highest * classes) + 1
    step = -(-max(values, 2) // bins)
    count = -(-max(values, 2) // step)
    return (np.arange(count + 1) * step - 0.5) / classes


def draw_near_zero(inputs: Sequence[Named]) -> Figure:
    """Histogram of the near-zero share, above the density of samples over top-1 probability and that share.

    Axes, bins and the colour scale are shared. Raises `UserError` for too many inputs.
    """
    check_input_count(len(inputs))
    statistics = [one for _, one in inputs]
    edges = share_edges(statistics)
    threshold = statistics[0].threshold
    probabilities = np.linspace(0, 1, _BINS + 1)
    counts = [np.histogram2d(s.confidence, s.near_zero, (probabilities, edges))[0].T for s in statistics]
    most = max(float((100 * c / len(s)).max()) for c, s in zip(counts, statistics, strict=True))
    least = min(100 / len(s) for s in statistics)

    figure = Figure(figsize=(max(3.2 * len(inputs) + 1.2, 5.0), 5.8), layout="constrained")
    upper, lower = figure.subplots(2, len(inputs), squeeze=False, sharex="row", sharey="row")
    for column, ((label, s), count) in enumerate(zip(inputs, counts, strict=True)):
        top, bottom = upper[column], lower[column]
        shares = 100 * np.histogram(s.near_zero, edges)[0] / len(s)
        top.stairs(shares, edges, fill=True, color=RIGHT, alpha=0.35)
        top.stairs(shares, edges, color=RIGHT, linewidth=1.4)
        mean = float(s.near_zero.mean())
        top.axvline(mean, color="black", linestyle="--", linewidth=1)
        top.set_title(f"{label}\nmean share {mean:.2%}", fontsize=10)
        top.set_xlabel(f"share of logits with |z| < {threshold:g}")
        mesh = bottom.pcolormesh(
            probabilities,
            edges,
            np.ma.masked_equal(100 * count / len(s), 0),
            cmap=DENSITY,
            norm=LogNorm(least, max(most, 2 * least)),
            rasterized=True,
        )
        bottom.set(xlim=(0, 1), xlabel="top-1 probability")
        bottom.set_xticks(np.linspace(0, 1, 5), ["0", "0.25", "0.5", "0.75", "1"])
    upper[0].set(ylabel="samples (%)", ylim=(0, None))
    lower[0].set_ylabel(f"share of logits with |z| < {threshold:g}")
    # Bins reach below 0, shares do not.
    ticks = (edges[1:] + edges[:-1]) / 2
    if len(ticks) > 8:
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, edges[-1])
        ticks = ticks[ticks <= edges[-1]]
    for axes in upper:
        axes.set_xticks(ticks)
    for axes in lower:
        axes.set_yticks(ticks)
    for axes in (*upper, *lower):
        tidy_axes(axes)
    ticks_of_bar = LogLocator(subs=(1.0, 2.0, 5.0))
    bar = figure.colorbar(mesh, ax=list(lower), pad=0.01, ticks=ticks_of_bar, format="%g")
    bar.minorticks_off()
    bar.set_label("samples per cell (%)")
    return figure


def draw_logit_density(inputs: Sequence[Named]) -> Figure:
    """The density of all logits of all samples, of all inputs on one pair of axes, as in the MaxSup paper's notebook.

    Raises `UserError` for too many inputs.
    """
    check_input_count(len(inputs))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (label, s), (color, dash, _) in zip(inputs, STYLES, strict=False):
        density = s.logit_counts / (s.logit_counts.sum() * np.diff(s.logit_edges))
        axes.stairs(density, s.logit_edges, color=color, linestyle=dash, linewidth=1.6, label=label)
    axes.set(xlabel="logit", ylabel="density of all logits", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    return figure


def draw_distributions(inputs: Sequence[Named]) -> Figure:
    """Max logit, norm and margin: a row each, right and wrong predictions apart, each of them adding to 100%.

    The axes of a row are shared. Raises `UserError` for too many inputs.
    """
    check_input_count(len(inputs))
    rows = (("max_logit", "largest logit"), ("norm", "norm of the logits"), ("margin", "margin of the largest logit"))
    bins = min(_BINS, max(12, round(min(len(s) for _, s in inputs) ** 0.5)))
    figure = Figure(figsize=(max(3.2 * len(inputs) + 0.6, 5.6), 7.2), layout="constrained")
    grid = figure.subplots(len(rows), len(inputs), squeeze=False, sharex="row", sharey="row")
    for (name, text), line in zip(rows, grid, strict=True):
        values = [getattr(s, name) for _, s in inputs]
        low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for axes, (_, s), value in zip(line, inputs, values, strict=True):
            _draw_apart(axes, value, s.correct, edges)
            axes.set_xlabel(text)
            tidy_axes(axes)
        line[0].set(ylabel="samples (%)", ylim=(0, None))
    for axes, (label, s) in zip(grid[0], inputs, strict=True):
        wrong = int((~s.correct).sum())
        axes.set_title(f"{label}\n{len(s) - wrong:,} right, {wrong:,} wrong", fontsize=10)
    handles = [
        Patch(facecolor=(RIGHT, 0.35), edgecolor=RIGHT, label="right predictions"),
        Patch(facecolor="none", edgecolor=WRONG, linestyle="--", linewidth=1.6, label="wrong predictions"),
        Line2D([], [], color="0.2", linewidth=0.9, label="thin lines: medians"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.2, frameon=False, fontsize=9)
    return figure


def _draw_apart(axes: Axes, values: np.ndarray, correct: np.ndarray, edges: np.ndarray) -> None:
    for mask, color, dash in ((correct, RIGHT, "-"), (~correct, WRONG, "--")):
        if not mask.any():
            continue
        shares = 100 * np.histogram(values[mask], edges)[0] / mask.sum()
        if mask is correct:
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.35)
        axes.stairs(shares, edges, color=color, linestyle=dash, linewidth=1.6)
        axes.axvline(float(np.median(values[mask])), color=color, linestyle=dash, linewidth=0.9)


def logit_table(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Markdown of the summaries (`summarise`) of named inputs: one table of metrics, one of distributions."""
    threshold = summaries[0][1]["threshold"]
    header = ["input", "samples", "classes", "top-1 %", "top-5 %", "NLL", "ECE", f"near zero % (|z| < {threshold:g})"]
    metrics = [
        [
            label,
            f"{s['samples']:,}",
            f"{s['classes']:,}",
            *(f"{100 * s[key]:.2f}" for key in ("top_1", "top_5")),
            *(f"{s[key]:.4f}" for key in ("nll", "ece")),
            f"{100 * s['near_zero_share']:.2f}",
        ]
        for label, s in summaries
    ]
    parts = [
        [
            f"{label}, {part}",
            f"{s[part]['count']:,}",
            *(f"{s[part][key]['mean']:.3f} ± {s[part][key]['std']:.3f}" for key in ("max_logit", "norm", "margin")),
            f"{s[part]['confidence']['mean']:.3f}",
            f"{100 * s[part]['near_zero']['mean']:.2f}",
        ]
        for label, s in summaries
        for part in ("right", "wrong")
        if s[part] is not None
    ]
    columns = ["predictions", "samples", "largest logit", "norm", "margin", "confidence", "near zero %"]
    return (
        markdown_table(header, metrics)
        + "\nMean ± standard deviation over samples; the margin is the largest logit minus the second largest.\n\n"
        + markdown_table(columns, parts)
    )
