"""Tables and figures of what ffcv-train eval --suite found, of one network or of several beside each other."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ffcv_train.analysis.figures.reliability import draw_reliability
from ffcv_train.analysis.figures.style import STYLES, check_input_count, tidy_axes
from ffcv_train.metrics.calibration import calibration_of

Named = tuple[str, Mapping[str, Any]]
"""A network's name, empty where there is only one, and its record of a suite"""
_SCORES = {"probability": "largest probability", "logit": "largest logit", "margin": "margin of the logits"}
_OOD_SCORES = {"probability": "largest probability", "logit": "largest logit", "energy": "energy", "knn": "neighbour"}


@dataclass(frozen=True)
class SuiteTable:
    """Texts; the first column names the rows, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def suite_tables(name: str, inputs: Sequence[Named]) -> list[SuiteTable]:
    """The tables of suite `name`. Raises `KeyError` or `TypeError` for a record that is none."""
    return _TABLES[name](inputs) if name in _TABLES else []


def draw_suite(name: str, inputs: Sequence[Named]) -> Figure:
    """The figure of suite `name`. Raises `UserError` for more networks than can be told apart."""
    return _FIGURES[name](inputs)


def _calibration_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    keys = (("nll", "NLL"), ("ece", "ECE"), ("ece_mass", "ECE, equal mass"), ("brier", "Brier"))
    header = ["", "temperature", "samples", *(text for _, title in keys for text in (title, "scaled"))]
    rows = [
        [
            label,
            f"{record['temperature']:.4f}{' (edge)' if record['at_edge'] else ''}",
            f"{record['samples']:,}",
            *(f"{record[when][key]:.4f}" for key, _ in keys for when in ("before", "after")),
        ]
        for label, record in inputs
    ]
    return [SuiteTable(_fitted_on(inputs), header, rows)]


def _fitted_on(inputs: Sequence[Named]) -> str:
    sources = set()
    for _, record in inputs:
        source = record["fitted_on"]
        half = f"half of {Path(source['data_set']).name}, seed {source['split_seed']}"
        whole = Path(source["data_set"]).name
        sources.add(f"{whole if source['split_seed'] is None else half} ({source['samples']:,} samples)")
    return f"temperature fitted on {'; '.join(sorted(sources))}"


def _draw_calibration(inputs: Sequence[Named]) -> Figure:
    curves = []
    for label, record in inputs:
        setting = f"{record['samples']:,} samples"
        curves.append(calibration_of(record["before"], label or "as it is", setting))
        # Beside many others the scaled one would be one too many.
        if 2 * len(inputs) <= len(STYLES):
            scaled = f"{label + ', ' if label else ''}temperature {record['temperature']:.3g}"
            curves.append(calibration_of(record["after"], scaled, setting))
    return draw_reliability(curves)


def _selective_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    risks = list(inputs[0][1]["scores"]["probability"]["coverage_at_risk"])
    header = ["", "AURC", "excess AURC", *(f"coverage at {float(risk):.0%} risk" for risk in risks)]
    rows = [
        [
            f"{label}, {_SCORES[score]}" if label else _SCORES[score],
            f"{found['aurc']:.5f}",
            f"{found['excess_aurc']:.5f}",
            *(f"{100 * found['coverage_at_risk'][risk]:.2f}%" for risk in risks),
        ]
        for label, record in inputs
        for score, found in record["scores"].items()
    ]
    return [SuiteTable("", header, rows)]


def _draw_selective(inputs: Sequence[Named]) -> Figure:
    check_input_count(len(inputs))
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    panels = figure.subplots(1, len(_SCORES), sharey=True)
    for axes, (score, title) in zip(panels, _SCORES.items(), strict=True):
        for (label, record), (color, dash, _) in zip(inputs, STYLES, strict=False):
            found = record["scores"][score]
            text = f"{label + ', ' if label else ''}AURC {found['aurc']:.4f}"
            coverage, risk = ([100 * value for value in found["curve"][key]] for key in ("coverage", "risk"))
            axes.plot(coverage, risk, color=color, linestyle=dash, linewidth=1.6, label=text)
        axes.set(xlabel=f"coverage (%) by {title}", xlim=(0, 100), ylim=(0, None))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        tidy_axes(axes)
    panels[0].set_ylabel("risk: errors among those accepted (%)")
    return figure


def _groups_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    first = inputs[0][1]
    names = [name for name, group in first["groups"].items() if group["classes"]]
    header = ["", *(f"{name} ({first['groups'][name]['classes']} classes) %" for name in names)]
    rows = [
        [label or "accuracy", *(_percent(record["groups"].get(name, {}).get("accuracy")) for name in names)]
        for label, record in inputs
    ]
    title = (
        f"mean accuracy of classes; many: more than {first['many_over']} training samples, few: fewer than "
        f"{first['few_under']}, of {Path(first['train_set']).name}"
    )
    return [SuiteTable(title, header, rows)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _draw_groups(inputs: Sequence[Named]) -> Figure:
    check_input_count(len(inputs))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (label, record), (color, dash, marker) in zip(inputs, STYLES, strict=False):
        tested = [c for c in record["classes"] if c["accuracy"] is not None]
        ordered = sorted(tested, key=lambda c: c["train"])
        x, y = [c["train"] for c in ordered], [100 * c["accuracy"] for c in ordered]
        line = dash if len(ordered) <= 20 else "none"
        axes.plot(x, y, color=color, marker=marker, linestyle=line, markersize=4, alpha=0.8, label=label or None)
    first = inputs[0][1]
    for border in (first["many_over"], first["few_under"]):
        axes.axvline(border, color="0.6", linestyle=":", linewidth=1)
    axes.set(xscale="symlog", xlabel="training samples of the class", ylabel="accuracy (%)", ylim=(0, 100))
    if any(label for label, _ in inputs):
        axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    return figure


def _ood_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    header = ["", "AUROC %", "FPR at 95% %", "AUPR in %", "AUPR out %"]
    tables = []
    for number, first in enumerate(inputs[0][1]["sets"]):
        rows = [
            [
                f"{label}, {_OOD_SCORES[score]}" if label else _OOD_SCORES[score],
                *(_percent(found[key]) for key in ("auroc", "fpr_95", "aupr_in", "aupr_out")),
            ]
            for label, record in inputs
            for score, found in record["sets"][number]["scores"].items()
        ]
        title = f"{inputs[0][1]['samples']:,} samples against {first['samples']:,} of {Path(first['data_set']).name}"
        if first["shared_classes"]:
            title += f", which has classes of the network: {', '.join(first['shared_classes'][:5])}"
        tables.append(SuiteTable(title, header, rows))
    return tables


def _draw_ood(inputs: Sequence[Named]) -> Figure:
    check_input_count(len(inputs))
    sets = inputs[0][1]["sets"]
    figure = Figure(figsize=(max(5.4, 4.2 * len(sets)), 4.0), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for number, (axes, first) in enumerate(zip(panels, sets, strict=True)):
        scores = list(first["scores"])
        for place, ((label, record), (color, _, marker)) in enumerate(zip(inputs, STYLES, strict=False)):
            values = [100 * record["sets"][number]["scores"][score]["auroc"] for score in scores]
            spots = [x + 0.1 * (place - (len(inputs) - 1) / 2) for x in range(len(scores))]
            axes.plot(spots, values, color=color, marker=marker, linestyle="none", label=label or None)
        axes.axhline(50, color="0.6", linestyle=":", linewidth=1)
        axes.set_xticks(range(len(scores)), [_OOD_SCORES[score].replace(" ", "\n") for score in scores], fontsize=9)
        axes.set_title(f"against {Path(first['data_set']).name}", fontsize=10)
        axes.set_xlim(-0.5, len(scores) - 0.5)
        tidy_axes(axes)
    panels[0].set_ylabel("AUROC (%); dotted: chance")
    if any(label for label, _ in inputs):
        panels[0].legend(frameon=False, fontsize=9)
    return figure


def _corruptions_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    first = inputs[0][1]
    made = f"made with seed {first['seed']} and the constants of {first['constants']}"
    title = f"error % by severity, {first['samples']:,} samples a corruption, "
    title += made if first["prepared"] is None else f"of {Path(first['prepared']).name}"
    if first["prepared"] is not None and first.get("crop_ratio") == 1:  # records of before cut them once more
        title += ", whole images"
    header = ["", "clean", *map(str, range(1, 6)), "mean"]
    tables = []
    for label, record in inputs:
        rows = [
            [name, "", *(_percent(one["error"]) for one in severities), _percent(_mean(severities))]
            for name, severities in record["corruptions"].items()
        ]
        means = [*(_percent(one["error"]) for one in record["by_severity"]), _percent(record["mean"]["error"])]
        rows.append(["mean error", _percent(record["clean"]["error"]), *means])
        for key, text in (("nll", "NLL"), ("ece", "ECE")):
            values = [record["clean"], *record["by_severity"], record["mean"]]
            rows.append([text, *(f"{value[key]:.4f}" for value in values)])
        if record["mce"] is not None:
            rows.append(["mCE", *[""] * 6, _percent(record["mce"])])
        tables.append(SuiteTable(f"{label}: {title}" if label else title, header, rows))
    return tables


def _mean(severities: Sequence[Mapping[str, float]]) -> float:
    return sum(one["error"] for one in severities) / len(severities)


def _draw_corruptions(inputs: Sequence[Named]) -> Figure:
    check_input_count(len(inputs))
    names = list(inputs[0][1]["corruptions"])
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes, highest = figure.subplots(), 0.0
    for place, ((label, record), (color, _, marker)) in enumerate(zip(inputs, STYLES, strict=False)):
        spots = [x + 0.12 * (place - (len(inputs) - 1) / 2) for x in range(len(names))]
        values = [100 * _mean(record["corruptions"][name]) for name in names]
        text = f"{label + ', ' if label else ''}mean {100 * record['mean']['error']:.1f}%"
        axes.plot(spots, values, color=color, marker=marker, linestyle="none", label=text)
        axes.axhline(100 * record["clean"]["error"], color=color, linestyle=":", linewidth=1)
        highest = max(highest, *values)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right", fontsize=9)
    axes.set(ylabel="error (%), mean of severities; dotted: clean", ylim=(0, 1.1 * highest or 1))
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    return figure


def _variants_tables(inputs: Sequence[Named]) -> list[SuiteTable]:
    header = ["", "samples", "classes", "logits left out", "top-1 %", "top-5 %", "NLL", "ECE"]
    rows = []
    for label, record in inputs:
        head = f"{label}, " if label else ""
        for one in record["sets"]:
            counts = [f"{one[key]:,}" for key in ("samples", "classes", "left_out")]
            values = [_percent(one["top_1"]), _percent(one["top_5"]), f"{one['nll']:.4f}", f"{one['ece']:.4f}"]
            rows.append([f"{head}{Path(one['data_set']).name}", *counts, *values])
        if record["real"] is not None:
            real = record["real"]
            rows.append([f"{head}ReaL", f"{real['samples']:,}", "", "", _percent(real["top_1"]), "", "", ""])
    return [SuiteTable("", header, rows)]


def _draw_variants(inputs: Sequence[Named]) -> Figure:
    check_input_count(len(inputs))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    for (label, record), (color, _, marker) in zip(inputs, STYLES, strict=False):
        values = [(Path(one["data_set"]).name, one["top_1"]) for one in record["sets"]]
        if record["real"] is not None:
            top_1 = record["real"]["top_1"]  # None where no image has a label of ReaL's
            values.append(("ReaL", math.nan if top_1 is None else top_1))
        names = [name for name, _ in values]
        heights = [100 * value for _, value in values]
        axes.plot(range(len(values)), heights, color=color, marker=marker, linestyle="none", label=label or None)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    axes.set(ylabel="top-1 (%)", ylim=(0, 100), xlim=(-0.5, len(names) - 0.5))
    if any(label for label, _ in inputs):
        axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    return figure


_TABLES: dict[str, Callable[[Sequence[Named]], list[SuiteTable]]] = {
    "calibration": _calibration_tables,
    "selective": _selective_tables,
    "groups": _groups_tables,
    "ood": _ood_tables,
    "corruptions": _corruptions_tables,
    "variants": _variants_tables,
}
_FIGURES: dict[str, Callable[[Sequence[Named]], Figure]] = {
    "calibration": _draw_calibration,
    "selective": _draw_selective,
    "groups": _draw_groups,
    "ood": _draw_ood,
    "corruptions": _draw_corruptions,
    "variants": _draw_variants,
}
