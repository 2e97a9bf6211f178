"""Figure and table of a linear probe's search."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ffcv_train.analysis.figures.style import RIGHT, WRONG, tidy_axes
from ffcv_train.analysis.figures.tables import markdown_table


def draw_transfer(report: Mapping[str, Any]) -> Figure:
    """Held-out accuracy over the penalty's strength, and the result; `report` is what transfer.json holds."""
    curve = report["curve"]
    strengths = np.array([candidate["strength"] for candidate in curve])
    values = 100 * np.array([candidate["accuracy"] for candidate in curve])
    best, result = report["strength"], 100 * report["accuracy"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(strengths, values, color=RIGHT, marker="o", markersize=3.5, label="held-out part of the training set")
    axes.axvline(best, color="0.4", linestyle=":", linewidth=1.2)
    text = f"validation set, all of the training set fitted: {result:.2f}%"
    axes.plot(best, result, color=WRONG, marker="*", markersize=13, linestyle="none", label=text)
    axes.set(xscale="log", xlabel="strength λ of the L2 penalty", ylabel="accuracy (%)")
    tidy_axes(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    axes.set_title(f"{Path(report['train_set']).name} to {Path(report['val_set']).name}, λ = {best:.3g}", fontsize=10)
    return figure


def transfer_table(report: Mapping[str, Any]) -> str:
    """Markdown: the result, then a row per strength."""
    curve = report["curve"]
    strengths = [candidate["strength"] for candidate in curve]
    header = ["checkpoint", "training set", "validation set", "features", "λ", "held-out %", "accuracy %"]
    result = [
        str(report["checkpoint"]),
        f"{Path(report['train_set']).name} ({report['train_samples']:,})",
        f"{Path(report['val_set']).name} ({report['val_samples']:,})",
        f"{report['features']:,}",
        f"{report['strength']:.3g}",
        f"{100 * max(candidate['accuracy'] for candidate in curve):.2f}",
        f"{100 * report['accuracy']:.2f}",
    ]
    note = (
        f"\nλ was chosen on {report['held_out_samples']:,} held-out samples of the training set from {len(curve)} "
        f"values between {min(strengths):.3g} and {max(strengths):.3g}; then all of it was fitted.\n\n"
    )
    rows = [
        [
            f"{c['strength']:.3g}",
            f"{100 * c['accuracy']:.2f}",
            f"{c['nll']:.4f}",
            str(c["iterations"]),
            "yes" if c["converged"] else "no",
        ]
        for c in curve
    ]
    columns = ["λ", "held-out %", "held-out NLL", "iterations", "converged"]
    return markdown_table(header, [result]) + note + markdown_table(columns, rows)
