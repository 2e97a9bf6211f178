"""The comparison's outcome: compare.json, compare.md, compare.png and compare.svg."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.comparison.columns import _BY_KEY, METRICS, Metric
from ffcv_train.comparison.differences import PAIRED, differences_to_first, spread
from ffcv_train.comparison.figure import draw
from ffcv_train.comparison.plan import ComparisonPlan, PlannedRun
from ffcv_train.comparison.published import ADDRESSES, TrainingClasses, published
from ffcv_train.comparison.run import FailedRun, is_finished
from ffcv_train.data.loading.sampling import sampling_weights
from ffcv_train.data.open import open_further, open_together
from ffcv_train.metrics.paired import MOST_SEEDS
from ffcv_train.system.environment import command_line, describe_environment
from ffcv_train.system.files import replace_text, write_json

_TABLES = (
    ("Validation", ("top_1", "top_1_flip", "top_5", "nll", "ece")),
    ("Training set, centre crops", ("train_top_1", "train_nll")),
    (
        "Penultimate features",
        ("d_within_train", "d_within_val", "d_total_train", "d_total_val", "r_squared_train", "r_squared_val"),
    ),
    ("Linear transfer", ("transfer",)),
    (
        "Calibration",
        ("temperature", "nll_unscaled", "nll_scaled", "ece_unscaled", "ece_scaled", "brier", "brier_scaled"),
    ),
    ("Selective prediction", ("aurc", "aurc_logit", "aurc_margin", "excess_aurc", "coverage_5")),
    ("Often and seldom seen classes", ("many", "medium", "few")),
    ("Corruptions", ("corrupted", "corrupted_nll", "corrupted_ece", "mce")),
    ("Out-of-distribution detection", ("auroc", "auroc_logit", "auroc_energy", "auroc_knn", "fpr_95")),
    ("Other pictures of the classes", ("variants", "variants_nll", "real")),
)
_QUALITIES = {
    **dict.fromkeys(("top_1", "nll", "ece"), ""),
    **dict.fromkeys(("ece_unscaled", "ece_scaled", "brier"), "calibration"),
    **dict.fromkeys(("aurc", "coverage_5"), "selective"),
    **dict.fromkeys(("many", "medium", "few"), "groups"),
    **dict.fromkeys(("auroc", "auroc_knn"), "ood"),
    **dict.fromkeys(("corrupted", "corrupted_ece", "mce"), "corruptions"),
    **dict.fromkeys(("variants", "real"), "variants"),
    **dict.fromkeys(("d_within_val", "r_squared_val", "transfer"), ""),
}
"""The columns of the opening table, and the suite that each comes from"""
_INSTEAD = {"ece": "ece_unscaled"}
"""What stands in for a column of the opening table where it is there: of the samples that the next column is of"""
_OPTIONAL = {"mce", "many", "medium", "few"}
"""Metrics that some data sets have no value of, for every run alike"""


def read_measures(plan: ComparisonPlan) -> dict[PlannedRun, dict[str, Any]]:
    """The measures of the runs that are finished, in the plan's order."""
    found = {}
    for run in plan.runs:
        if is_finished(plan, run):
            found[run] = json.loads((plan.folder(run) / "measures.json").read_text(encoding="utf-8"))
    return found


def summarise_runs(
    plan: ComparisonPlan, measures: Mapping[PlannedRun, Mapping[str, Any]], failures: Sequence[FailedRun]
) -> dict[str, Any]:
    """What compare.json holds: per criterion the values by seed, their mean and sample standard deviation."""
    criteria: dict[str, Any] = {}
    trained, probed = _training_classes(plan) if measures else (TrainingClasses(()), None)
    for loss in plan.losses:
        runs = [run for run in measures if run.loss == loss]
        if not runs:
            continue
        values = {}
        for metric in METRICS:
            by_seed = [value for run in runs if (value := _at(measures[run], metric.path)) is not None]
            if len(by_seed) == len(runs):
                values[metric.key] = spread(by_seed)
        rows = published(plan.config.model.arch, plan.config.training.epochs, loss, trained, probed)
        criteria[loss] = {
            "seeds": [run.seed for run in runs],
            "metrics": values,
            "published": [{**dataclasses.asdict(row), "address": ADDRESSES[row.source]} for row in rows],
        }
    differences = differences_to_first(plan, criteria, measures)
    return {
        "format": 1,
        "criteria": criteria,
        "differences": differences,
        "qualities": _qualities(criteria, differences),
        "failed": [
            {"run": f.run.name, "stage": f.stage, "status": f.status, "log": f.log, "tail": f.tail} for f in failures
        ],
        "missing": [run.name for run in plan.runs if run not in measures],
        "lacking": _lacking(measures),
        "transfer": _transfer_settings(measures),
        "calibration": _calibration_settings(measures),
        "runs": {run.name: content for run, content in measures.items()},
        "settings": plan.settings(),
        **describe_environment("cpu" if plan.config.training.device == "cpu" else _device()),
    }


def write_report(plan: ComparisonPlan, summary: Mapping[str, Any]) -> list[Path]:
    """Write compare.json, compare.md and, where there is something to show, the figure; returns their paths."""
    paths = [plan.out / "compare.json", plan.out / "compare.md"]
    write_json(paths[0], summary)
    replace_text(paths[1], to_markdown(plan, summary))
    if summary["criteria"]:
        figure = draw(summary)
        for kind in ("png", "svg"):
            paths.append(plan.out / f"compare.{kind}")
            save_figure(figure, paths[-1])
    return paths


def to_markdown(plan: ComparisonPlan, summary: Mapping[str, Any]) -> str:
    """compare.md: tables with mean ± sample standard deviation over seeds, published rows beside them."""
    criteria = summary["criteria"]
    config = plan.config
    epochs = f"{config.training.epochs} epoch{'s' if config.training.epochs > 1 else ''}"
    lines = [
        f"# {', '.join(plan.losses)}: {config.model.arch}, {epochs}",
        "",
        "```",
        command_line(),
        "```",
        "",
        f"Train `{Path(config.data.train_dataset).name}`, val `{Path(config.data.val_dataset).name}`, evaluated at "
        f"{config.validation.resolution[0]} px. Mean ± sample standard deviation over seeds; a value without one is of "
        "one seed. d and R² after arXiv:2010.16402, features of centre crops.",
        "",
    ]
    columns = summary["qualities"]["columns"]
    if columns:
        lines += ["| criterion | " + " | ".join(column["title"] for column in columns) + " |"]
        lines += ["| --- |" + " ---: |" * len(columns)]
        for name in criteria:
            lines.append(f"| {name} | {' | '.join(column['cells'][name] for column in columns)} |")
        lines += ["", summary["qualities"]["note"], ""]
    for record in summary["lacking"]:
        titles = "; ".join(_BY_KEY[key].title for key in record["metrics"])
        lines += [f"**{record['run']} {record['why']}** {titles}: its criterion has no mean there.", ""]
    settings = {"Linear transfer": summary["transfer"], "Calibration": summary["calibration"]}
    for title, keys in _TABLES:
        shown = [key for key in keys if any(key in row["metrics"] for row in criteria.values())]
        if shown:
            lines += [f"## {title}", "", *_table(criteria, shown), ""]
            for note in _published_notes(criteria, shown, config.training.epochs):
                lines += [note, ""]
            if settings.get(title):
                lines += [settings[title], ""]
    if summary["differences"]:
        lines += _difference_lines(next(iter(criteria)), summary["differences"])
    if criteria:
        lines += ["![Dots per seed, a bar at the mean; hollow: training set](compare.png)", ""]
    failed = {record["run"] for record in summary["failed"]}
    for record in summary["failed"]:
        lines += [f"**{record['run']} failed** to {record['stage']} (status {record['status']}): `{record['log']}`", ""]
    missing = [name for name in summary["missing"] if name not in failed]
    if missing:
        lines += [f"**Not yet run**: {', '.join(missing)}", ""]
    return "\n".join(lines)


def format_value(metric: Metric, found: Mapping[str, Any], signed: bool = False) -> str:
    """mean ± sample standard deviation in the metric's unit; the mean alone of one seed."""
    sign = "+" if signed else ""
    mean = f"{found['mean'] * metric.scale:{sign}.{metric.digits}f}"
    return mean if found["sd"] is None else f"{mean} ± {found['sd'] * metric.scale:.{metric.digits}f}"


def _table(criteria: Mapping[str, Any], keys: Sequence[str], signed: bool = False) -> list[str]:
    lines = ["| criterion | seeds | " + " | ".join(_BY_KEY[key].title for key in keys) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(keys))
    for name, row in criteria.items():
        seeds = "one seed" if len(row["seeds"]) == 1 else str(len(row["seeds"]))
        cells = [
            format_value(_BY_KEY[key], row["metrics"][key], signed) if key in row["metrics"] else "–" for key in keys
        ]
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
        for known in row["published"]:
            if any(key in known["values"] for key in keys):
                lines.append(f"| {_published_title(name, known)} | | {' | '.join(_published_cells(known, keys))} |")
    return lines


def _published_title(name: str, known: Mapping[str, Any]) -> str:
    where = known["source"] if known["epochs"] is None else f"{known['source']}, {known['epochs']} epochs"
    return f"{name}, published ({where})"


def _published_cells(known: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    values, metrics = known["values"], [_BY_KEY[key] for key in keys]
    return [f"{values[m.key] * m.scale:.{m.digits}f}" if m.key in values else "" for m in metrics]


def _published_notes(criteria: Mapping[str, Any], keys: Sequence[str], epochs: int) -> list[str]:
    """What the published rows of a table are of, a sentence each."""
    rows = [known for row in criteria.values() for known in row["published"] if set(keys) & set(known["values"])]
    notes = []
    for known in rows:
        length = "of a length not known here" if known["epochs"] is None else f"{known['epochs']} epochs"
        ours = "" if known["epochs"] == epochs else f" (these runs: {epochs})"
        caveat = f"; {known['caveat']}" if known["caveat"] else ""
        notes.append(f"Published, {known['source']} ({known['address']}): {known['data']}, {length}{ours}{caveat}.")
    return list(dict.fromkeys(notes))


def _qualities(criteria: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """The opening table: a column per quality that a criterion has, marked by the difference to the first one."""
    if not criteria:
        return {"columns": [], "note": ""}
    first = next(iter(criteria))
    columns = []
    for key, suite in _QUALITIES.items():
        if not _has(criteria, key) or (key in _INSTEAD and _has(criteria, _INSTEAD[key])):
            continue
        metric = _BY_KEY[key]
        cells = dict.fromkeys(criteria, "–")
        for name, row in criteria.items():
            if key not in row["metrics"]:
                continue
            mean = f"{row['metrics'][key]['mean'] * metric.scale:.{metric.digits}f}"
            found = differences.get(name, {}).get("metrics", {}).get(key)
            cells[name] = f"{mean} {_mark(metric, found)}".strip() if name != first else mean
        columns.append({"title": metric.title, "suite": suite, "cells": cells})
    note = (
        f"Means over seeds. Against {first}, by the 95% interval of the paired difference: ▲ better, ▼ worse, "
        "↑ higher, ↓ lower, = no difference that these runs show; no mark: the runs are too few to say, or too alike."
    )
    if any(row["seeds"] != criteria[first]["seeds"] for row in criteria.values()):
        note += f" Not all criteria have the same seeds: a mark is of the seeds that {first} has too, a mean of all."
    if any(len(row["seeds"]) == 1 for row in differences.values()):
        note += " Of one seed, the interval is a bootstrap over validation samples."
    return {"columns": columns, "note": note}


def _mark(metric: Metric, found: Mapping[str, Any] | None) -> str:
    if found is None or found["interval"] is None:
        return ""
    if not found["exceeds"]:
        return "="
    if not metric.better:
        return "↑" if found["mean"] > 0 else "↓"
    return "▲" if found["mean"] * metric.better > 0 else "▼"


def _difference_lines(first: str, differences: Mapping[str, Any]) -> list[str]:
    """Differences with their intervals, and how many seeds would show them."""
    keys = [key for key in PAIRED if _has(differences, key)]
    several = {name: row for name, row in differences.items() if len(row["seeds"]) > 1}
    lines = [
        f"## Difference to {first}, seed by seed",
        "",
        "Runs of one seed start from the same weights and see the same crops in the same order. In brackets is the 95% "
        "interval of the mean difference (paired t); bold differences exceed it, the others are no difference that "
        "these runs show. Of many intervals, one in twenty misses the truth by chance.",
        "",
    ]
    if len(several) < len(differences):
        lines += [
            "With one seed the interval is a bootstrap over validation samples: what other samples would change, not "
            "what another seed would.",
            "",
        ]
    if any(
        found["sd"] is not None and found["interval"] is None
        for row in several.values()
        for found in row["metrics"].values()
    ):
        lines += [
            "Where the difference is the same with every seed, the metric is too coarse to tell its spread, and there "
            "is no interval.",
            "",
        ]
    lines += [*_by_quality(differences, keys, format_difference), ""]
    if several:
        lines += [
            "## Seeds needed to see a difference of the size found",
            "",
            "With a chance of 80%, by a paired t-test at 5% that takes the mean and spread above for the true ones; of "
            "a few seeds both are rough.",
            "",
            *_by_quality(several, keys, lambda _, found: _seeds_text(found)),
            "",
        ]
    return lines


def _by_quality(
    rows: Mapping[str, Any], keys: Sequence[str], text: Callable[[Metric, Mapping[str, Any] | None], str]
) -> list[str]:
    """A row per quality, a column per criterion: there may be many of the former, and few of the latter."""
    counts = ["one seed" if len(row["seeds"]) == 1 else f"{len(row['seeds'])} seeds" for row in rows.values()]
    titles = [f"{name}, {count}" for name, count in zip(rows, counts, strict=True)]
    lines = [f"| quality | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(rows)]
    for key in keys:
        cells = [text(_BY_KEY[key], row["metrics"].get(key)) for row in rows.values()]
        lines.append(f"| {_BY_KEY[key].title} | {' | '.join(cells)} |")
    return lines


def format_difference(metric: Metric, found: Mapping[str, Any] | None) -> str:
    """A difference with its interval in the metric's unit; bold where it exceeds it, else said to be none."""
    if found is None:
        return "–"
    mean = f"{found['mean'] * metric.scale:+.{metric.digits}f}"
    interval = found["interval"]
    if interval is None:
        return f"{mean} ({'one seed' if found['sd'] is None else 'the same with every seed'})"
    low, high = (f"{value * metric.scale:+.{metric.digits}f}" for value in interval)
    return f"**{mean}** [{low}, {high}]" if found["exceeds"] else f"no difference: {mean} [{low}, {high}]"


def _seeds_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    if found["interval"] is None:
        return "cannot be told"
    return f"over {MOST_SEEDS}" if found["seeds_needed"] is None else str(found["seeds_needed"])


def _has(rows: Mapping[str, Any], key: str) -> bool:
    return any(key in row["metrics"] for row in rows.values())


def _transfer_settings(measures: Mapping[PlannedRun, Mapping[str, Any]]) -> str:
    found = [content["transfer"] for content in measures.values() if content["transfer"]]
    if not found:
        return ""
    one = found[0]
    low, high, count = one["grid"]
    edge = sum(transfer["at_edge"] for transfer in found)
    return (
        f"Logistic regression on frozen features, {one['train_samples']:,} training samples of "
        f"`{Path(one['files'][0]).name}`, {one['test_samples']:,} test samples of `{Path(one['files'][1]).name}`; L2 "
        f"chosen on {one['held_out']:.0%} of the training samples from {count} log-spaced values {low:.0e} to "
        f"{high:.0e}, at the grid's end in {edge} of {len(found)} runs."
    )


def _calibration_settings(measures: Mapping[PlannedRun, Mapping[str, Any]]) -> str:
    records = (content.get("suites", {}).get("calibration", {}) for content in measures.values())
    found = next((record for record in records if "fitted_on" in record), None)
    if found is None:
        return ""
    fitted = found["fitted_on"]
    if fitted["split_seed"] is None:
        where = f"of `{Path(fitted['data_set']).name}`"
    else:
        where = f"of the validation set, drawn by seed {fitted['split_seed']}"
    return (
        f"Of {found['samples']:,} validation samples, without and with a temperature fitted to {fitted['samples']:,} "
        f"{where}; the tables of validation are of all samples."
    )


def _lacking(measures: Mapping[PlannedRun, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs, the metrics that they lack and other runs have, or should have, and why: a mean needs every seed's."""
    found: dict[tuple[str, str], list[str]] = {}
    for metric in METRICS:
        values = {run: _at(content, metric.path) for run, content in measures.items()}
        some = any(value is not None for value in values.values())
        for run, value in values.items():
            measured = _is_measured(measures[run], metric.path)
            if value is None and (some or (measured and metric.key not in _OPTIONAL)):
                why = "has no finite value of" if measured else "was not measured for"
                found.setdefault((run.name, why), []).append(metric.key)
    return [{"run": run, "why": why, "metrics": keys} for (run, why), keys in found.items()]


def _at(content: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = content
    for key in path:
        if value is None:
            return None
        # Suites came later than the format, and are there where they were asked for.
        value = value.get(key) if path[0] == "suites" else value[key]
    return float(value) if value is not None and math.isfinite(value) else None


def _is_measured(content: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether a run's record has a place for the value, if only to say that it is not finite."""
    value: Any = content
    for key in path:
        if value is None or key not in value:
            return False
        value = value[key]
    return True


def _training_classes(plan: ComparisonPlan) -> tuple[TrainingClasses, TrainingClasses | None]:
    """What tells the training set, as far as it is drawn from, and that of the linear probe."""
    data = plan.config.data
    train = open_together((data.train_dataset, data.val_dataset), data.format, data.classes, plan.further)[0]
    weights = sampling_weights(data.sampling, data.subset, train.labels)
    labels = train.labels if weights is None else train.labels[weights > 0]
    trained = _classes(labels, plan.config.model.num_classes or train.num_classes, train.class_names)
    if not plan.transfer:
        return trained, None
    probe = open_further(plan.transfer[0], data.classes)
    return trained, _classes(probe.labels, probe.num_classes, probe.class_names)


def _classes(labels: np.ndarray, num_classes: int, names: tuple[str, ...] | None) -> TrainingClasses:
    return TrainingClasses(tuple(np.bincount(labels, minlength=num_classes).tolist()), names)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
