"""A comparison as a figure: a panel per column, a point per run."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from ffcv_train.comparison.columns import _BY_KEY

_PANELS = (
    ("top_1", None, "top-1 (%)"),
    ("ece", None, "ECE"),
    ("d_within_val", "d_within_train", "d_within"),
    ("r_squared_val", "r_squared_train", "R²"),
)


def draw(summary: Mapping[str, Any]) -> Figure:
    """A panel per metric: a dot per seed and a bar at the mean, per criterion; hollow dots are of the training set."""
    criteria = summary["criteria"]
    names = list(criteria)
    figure = Figure(figsize=(max(6.4, 2.2 + 0.75 * 2 * len(names)), 6.0), layout="constrained")
    for axes, (key, other, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        scale = _BY_KEY[key].scale
        for x, name in enumerate(names):
            for metric, shift, filled in ((other, -0.16, False), (key, 0.16 if other else 0.0, True)):
                found = criteria[name]["metrics"].get(metric) if metric else None
                if found is None:
                    continue
                values = [value * scale for value in found["values"]]
                # Side by side, so that equal values are told apart.
                spots = [x + shift + 0.05 * (i - (len(values) - 1) / 2) for i in range(len(values))]
                color = "#0072B2" if filled else "#D55E00"
                axes.plot(
                    spots,
                    values,
                    linestyle="none",
                    marker="o" if filled else "s",
                    markersize=5.5,
                    color=color,
                    markerfacecolor=color if filled else "white",
                    label=("val" if filled else "train") if x == 0 and other else None,
                )
                mean = found["mean"] * scale
                axes.plot([x + shift - 0.13, x + shift + 0.13], [mean, mean], color="black", linewidth=1.6, zorder=3)
        seeds = {len(row["seeds"]) for row in criteria.values()}
        note = "" if seeds != {1} else ", one seed"
        axes.set(title=title + note, xlim=(-0.6, len(names) - 0.4))
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
