"""Figure and table of feature metrics."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ffcv_train.analysis.figures.style import RIGHT, tidy_axes
from ffcv_train.analysis.figures.tables import markdown_table
from ffcv_train.metrics.features import FeatureMetrics

Named = tuple[str, FeatureMetrics]


def draw_features(inputs: Sequence[Named]) -> Figure:
    """A panel for each of d_within, d_total and R², a line with its number per input."""
    figure = Figure(figsize=(8.2, 1.2 + 0.36 * len(inputs)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    texts = (("d_within", "d within"), ("d_total", "d total"), ("r_squared", "separability R²"))
    for axes, (name, text) in zip(panels, texts, strict=True):
        for row, (_, metrics) in enumerate(inputs):
            value = getattr(metrics, name)
            axes.plot([0, value], [row, row], color=RIGHT, linewidth=1.6, marker="o", markevery=[1], markersize=6)
            axes.annotate(
                f"{value:.4f}", (value, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set(xlabel=text, ylim=(len(inputs) - 0.5, -0.5))
        axes.set_xlim(0, 1.3 * max([*(v for _, m in inputs if (v := getattr(m, name)) == v), 1e-3]))
        tidy_axes(axes)
    panels[0].set_yticks(range(len(inputs)), [label for label, _ in inputs])
    return figure


def feature_table(inputs: Sequence[Named], data_sets: Sequence[str]) -> str:
    """Markdown: a row per input."""
    header = ["input", "data set", "samples", "classes", "d_within", "d_total", "R²"]
    rows = [
        [label, data_set, f"{m.samples:,}", f"{m.classes:,}", f"{m.d_within:.4f}", f"{m.d_total:.4f}", _r(m)]
        for (label, m), data_set in zip(inputs, data_sets, strict=True)
    ]
    return markdown_table(header, rows)


def _r(metrics: FeatureMetrics) -> str:
    return "–" if metrics.r_squared != metrics.r_squared else f"{metrics.r_squared:.4f}"
