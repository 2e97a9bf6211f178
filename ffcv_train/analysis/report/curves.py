"""Curves over epochs as small SVG panels that take the page's colours and font."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ffcv_train.analysis.figures.style import STYLES
from ffcv_train.analysis.report.content import Key, Panels
from ffcv_train.analysis.report.runs import Run
from ffcv_train.system.errors import UserError

MAX_CURVES = 2 * len(STYLES)
_COLORS = tuple(color for color, _, _ in STYLES)
_DASHES = ((), (5.0, 2.0), (1.2, 1.6), (6.0, 1.6, 1.2, 1.6), (5.0, 1.2, 1.2, 1.2, 1.2, 1.2), (2.5, 1.2))
# Stand for the page's own: no curve has them.
_TEXT, _GRID = "#123456", "#654321"


@dataclass(frozen=True)
class Quantity:
    """A number of an epoch's record, and how it is drawn."""

    key: str
    title: str
    scale: float = 1.0
    steps: bool = False
    from_zero: bool = False


QUANTITIES = (
    Quantity("train_loss", "training loss, penalty included"),
    Quantity("nll", "validation NLL"),
    Quantity("top_1", "top-1 (%)", 100),
    Quantity("ece", "ECE", from_zero=True),
    Quantity("lr", "learning rate", from_zero=True),
    Quantity("resolution", "training resolution (px)", steps=True),
    Quantity("alpha", "weight of the penalty α", from_zero=True),
    Quantity("images_per_s", "training images/s", from_zero=True),
    Quantity("data_wait", "waiting for data (%)", 100, from_zero=True),
)


@dataclass(frozen=True, eq=False)
class Curve:
    """A line, and on request a band around it."""

    epochs: np.ndarray
    """From 1"""
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def draw_runs(runs: Sequence[Run]) -> Panels:
    """A curve per run. Raises `UserError` for more than can be told apart."""
    _check_count(len(runs), "runs")

    def of(run: Run, key: str) -> Curve | None:
        return mean_curve([run.records], key)

    return _panels([run.name for run in runs], lambda i, key: of(runs[i], key))


def draw_groups(groups: Sequence[tuple[str, Sequence[Run]]]) -> Panels:
    """A curve per group of runs: their mean, with a band from the least to the largest."""
    _check_count(len(groups), "criteria")
    labels = [f"{name} ({len(runs)} seed{'s' if len(runs) > 1 else ''})" for name, runs in groups]
    return _panels(labels, lambda i, key: mean_curve([run.records for run in groups[i][1]], key))


def mean_curve(logs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> Curve | None:
    """Mean, least and largest of `key` over the logs that have it, at each epoch that one has; None without any.

    No band where there is one log. A value that is not finite, null in the log, is NaN and leaves a gap.
    """
    values: dict[int, list[float]] = {}
    for log in logs:
        for record in log:
            if key in record:
                value = record[key]
                values.setdefault(record["epoch"] + 1, []).append(np.nan if value is None else float(value))
    if not values:
        return None
    epochs = sorted(values)
    columns = [values[epoch] for epoch in epochs]
    mean = np.array([np.mean(column) for column in columns])
    if len(logs) == 1:
        return Curve(np.array(epochs), mean)
    low, high = (np.array([f(column) for column in columns]) for f in (np.min, np.max))
    return Curve(np.array(epochs), mean, low, high)


def _check_count(count: int, what: str) -> None:
    if count > MAX_CURVES:
        raise UserError(f"a page tells at most {MAX_CURVES} {what} apart, not {count}; give fewer")


def _panels(labels: Sequence[str], curve: Callable[[int, str], Curve | None]) -> Panels:
    panels, all_epochs = [], [curve(i, "epoch") for i in range(len(labels))]
    last = max(int(found.epochs[-1]) for found in all_epochs if found is not None)
    for quantity in QUANTITIES:
        curves = [curve(i, quantity.key) for i in range(len(labels))]
        if any(found is not None for found in curves):
            panels.append((quantity.title, draw_panel(quantity, curves, labels, last)))
    return Panels([_key(i, label) for i, label in enumerate(labels)], panels)


def _key(index: int, label: str) -> Key:
    dashes = " ".join(f"{2 * length:g}" for length in _DASHES[index % len(_DASHES)])
    return Key(label, f"var(--series-{index % len(_COLORS)})", dashes)


def draw_panel(quantity: Quantity, curves: Sequence[Curve | None], labels: Sequence[str], last: int) -> str:
    """One quantity of all runs as SVG, from epoch 0 to `last`.

    Curve i has the colour --series-(i mod 6); the second six have markers.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": quantity.key,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.9, 2.3), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        for index, curve in enumerate(curves):
            if curve is not None:
                _draw_curve(axes, quantity, curve, index)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_xlim(0, last + 0.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=quantity.steps))
        axes.tick_params(labelsize=8.5, length=2.5)
        axes.grid(color=_GRID, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if quantity.from_zero:
            axes.set_ylim(bottom=0)
        text = _svg_text(figure)
    return _adapt(text, quantity, labels)


def _draw_curve(axes: Axes, quantity: Quantity, curve: Curve, index: int) -> None:
    color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    marker = "o" if index >= len(_COLORS) or len(curve.epochs) < 8 else None
    axes.plot(
        curve.epochs,
        quantity.scale * curve.values,
        color=color,
        linestyle=(0, dashes) if dashes else "-",
        linewidth=1.5,
        marker=marker,
        markersize=3,
        drawstyle="steps-mid" if quantity.steps else "default",
    )
    if curve.low is not None and curve.high is not None:
        low, high = quantity.scale * curve.low, quantity.scale * curve.high
        axes.fill_between(
            curve.epochs, low, high, color=color, alpha=0.2, linewidth=0, step="mid" if quantity.steps else None
        )


def _svg_text(figure: Figure) -> str:
    content = io.StringIO()
    FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    return content.getvalue()


def _adapt(text: str, quantity: Quantity, labels: Sequence[str]) -> str:
    """matplotlib's SVG as part of a page: in its colours and font, without a size and needless identifiers."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # A style element would hold for the whole page; the page has these rules for .panel.
    text = re.sub(r"<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for index, color in enumerate(_COLORS):
        text = text.replace(color.lower(), f"var(--series-{index})")
    text = text.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    label = html.escape(f"{quantity.title} over epochs: {', '.join(labels)}")
    opening = f'<svg role="img" aria-label="{label}" {box[0]} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + body
