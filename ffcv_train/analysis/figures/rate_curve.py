"""The figure of a learning-rate range test."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ffcv_train.analysis.figures.style import RIGHT, tidy_axes


def draw_rate_curve(rates: Sequence[float], losses: Sequence[float], suggested: float) -> Figure:
    """Smoothed loss over the rate, on a logarithmic axis, with the suggested rate."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=RIGHT, linewidth=1.6)
    axes.axvline(suggested, color="black", linestyle="--", linewidth=1)
    axes.annotate(f" {suggested:.2g}", (suggested, max(losses)), va="top", fontsize=9)
    axes.set(xscale="log", xlabel="learning rate of the step", ylabel="training loss, smoothed")
    tidy_axes(axes)
    return figure
