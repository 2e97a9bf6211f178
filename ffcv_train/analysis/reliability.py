"""Reliability diagrams from the metrics that eval.py writes."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ffcv_train.errors import UserError
from ffcv_train.records import replace_file

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's colours, told apart by the colour-blind; dash and marker tell the lines apart in greyscale.
STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#000000", ":", "^"),
    ("#009E73", "-.", "D"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#E69F00", (0, (1, 1)), "P"),
)


@dataclass(frozen=True)
class Calibration:
    """One curve of a reliability diagram; the arrays have an entry per bin, NaN where the bin is empty."""

    label: str
    setting: str
    """What was evaluated, such as "10,000 samples at 224 px, flip-averaged" """
    top_1: float
    nll: float
    ece: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def read_calibration(
    path: str | Path, *, label: str = "", resolution: int | None = None, flip_averaged: bool = False
) -> Calibration:
    """One result of a metrics file: that of `resolution`, the first where that is None.

    `label` is the curve's name, the checkpoint's folder where it is empty. Raises `UserError` where the file is no
    metrics file or lacks the result.
    """
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the file that eval.py --output wrote") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; give the file that eval.py --output wrote") from None
    try:
        results = {int(result["resolution"]): result for result in report["results"]}
        resolution = next(iter(results)) if resolution is None else resolution
        if resolution not in results:
            known = ", ".join(map(str, results))
            raise UserError(f"{path} has no result at {resolution} px, only at {known}; evaluate at that side as well")
        result = results[resolution]
        if flip_averaged and "flip_averaged" not in result:
            raise UserError(f"{path} has no flip-averaged result; evaluate with --validation.lr_tta=1")
        setting = f"{result['count']:,} samples at {resolution} px{', flip-averaged' if flip_averaged else ''}"
        metrics = result["flip_averaged"] if flip_averaged else result
        return calibration_of(metrics, label or _default_label(report), setting)
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
        raise UserError(f"{path} is not a metrics file; give the file that eval.py --output wrote") from None


def wilson_interval(hits: np.ndarray, counts: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the score interval (Wilson 1927) of the share hits / counts; NaN where counts is 0.

    `z` is the normal quantile: 1.96 for 95%. Unlike p ± z √(p(1−p)/n), it has a width where all or none are hits.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        n = counts.astype(np.float64)
        share = hits / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # The ends are exactly 0 and 1 at no and all hits; rounding must not put the share itself outside.
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


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


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all, in the format that the file's ending says. Raises `UserError`."""
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{path} must end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}, the formats of figures")
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=200)
    replace_file(path, content.getvalue())


def calibration_of(metrics: dict[str, Any], label: str, setting: str) -> Calibration:
    """The curve of what `MetricSums.compute` said, as it is or as JSON gave it. Raises `ValueError`, `KeyError`."""
    bins = metrics["bins"]
    # JSON says null for the mean of an empty bin and for what is not finite; float64 says NaN for both.
    counts = np.array(bins["count"], dtype=np.int64)
    confidence, accuracy = (np.array(bins[key], dtype=np.float64) for key in ("confidence", "accuracy"))
    if not counts.ndim == 1 <= len(counts) == len(confidence) == len(accuracy) or counts.sum() != metrics["count"]:
        raise ValueError("bins do not fit")
    top_1, nll, ece = (math.nan if metrics[key] is None else float(metrics[key]) for key in ("top_1", "nll", "ece"))
    return Calibration(label, setting, top_1, nll, ece, counts, confidence, accuracy)


def _default_label(report: dict[str, Any]) -> str:
    checkpoint = Path(report["checkpoint"])
    return checkpoint.parent.name or checkpoint.stem


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
