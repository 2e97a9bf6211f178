"""Reliability diagrams from the metrics that ffcv-train eval writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ffcv_train.analysis.figures.style import STYLES
from ffcv_train.metrics.calibration import Calibration, wilson_interval
from ffcv_train.system.errors import UserError


def draw_reliability(curves: Sequence[Calibration]) -> Figure:
    """Accuracy against confidence per bin, with 95% intervals, above the histogram of confidences.

    A curve below the diagonal is overconfident. Raises `UserError` for no curves or more than can be told apart.
    """
    if not 1 <= len(curves) <= len(STYLES):
        raise UserError(f"a reliability diagram shows 1 to {len(STYLES)} metrics files, not {len(curves)}")
    settings = {curve.setting for curve in curves}
    shared = settings.pop() if len(settings) == 1 else ""
    lines = len(curves) * (1 if shared else 2) + bool(shared)
    figure = Figure(figsize=(5.4, 6.4 + 0.19 * lines), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=1)
    upper.text(0.02, 0.98, "underconfident", color="0.45", fontsize=9, va="top")
    upper.text(0.98, 0.02, "overconfident", color="0.45", fontsize=9, ha="right")
    handles = [
        _draw_curve(upper, lower, curve, style, with_setting=not shared)
        for curve, style in zip(curves, STYLES, strict=False)
    ]
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy, with 95% interval")
    lower.set(xlabel="confidence", ylabel="samples (%)", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xticks(np.linspace(0, 1, 6))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        title=shared or None,
        alignment="left",
        frameon=False,
        handlelength=3.4,
        fontsize=9,
        title_fontsize=9,
    )
    return figure


def _draw_curve(
    upper: Axes, lower: Axes, curve: Calibration, style: tuple[str, Any, str], with_setting: bool
) -> Line2D:
    """Draw one curve and return its line for the legend."""
    color, dash, marker = style
    filled = curve.counts > 0
    x, y = curve.confidence[filled], curve.accuracy[filled]
    counts = curve.counts[filled]
    ends = wilson_interval(y * counts, counts)
    upper.errorbar(x, y, yerr=[y - ends[0], ends[1] - y], fmt="none", ecolor=color, elinewidth=1, alpha=0.6, zorder=2)
    upper.plot(x, y, color=color, linestyle=dash, marker=marker, markersize=4.5, linewidth=1.6, zorder=3, clip_on=False)
    edges = np.linspace(0, 1, len(curve.counts) + 1)
    lower.stairs(100 * curve.counts / curve.counts.sum(), edges, color=color, linestyle=dash, linewidth=1.6)
    text = f"{curve.label}: top-1 {curve.top_1:.2%}, NLL {curve.nll:.3f}, ECE {curve.ece:.2%}"
    if with_setting:
        text += f"\n({curve.setting})"
    return Line2D([], [], color=color, linestyle=dash, marker=marker, markersize=4.5, linewidth=1.6, label=text)
