"""The comparison's outcome: compare.json, compare.md, compare.png and compare.svg."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.comparison.columns import _BY_KEY, METRICS, Metric
from ffcv_train.comparison.figure import draw
from ffcv_train.comparison.measure import read_sample_results
from ffcv_train.comparison.plan import ComparisonPlan, PlannedRun
from ffcv_train.comparison.published import SOURCE, TRANSFER_GRID, published
from ffcv_train.comparison.run import FailedRun, is_finished
from ffcv_train.data.open import open_further, open_together
from ffcv_train.metrics.paired import MOST_SEEDS, Interval, bootstrap_interval, paired_interval, seeds_needed
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
    ("Calibration", ("temperature", "brier", "nll_scaled", "ece_scaled")),
    ("Selective prediction", ("aurc", "aurc_logit", "aurc_margin", "excess_aurc", "coverage_5")),
    ("Often and seldom seen classes", ("many", "medium", "few")),
    ("Corruptions", ("corrupted", "corrupted_nll", "corrupted_ece", "mce")),
    ("Out-of-distribution detection", ("auroc", "auroc_logit", "auroc_energy", "auroc_knn", "fpr_95")),
    ("Other pictures of the classes", ("variants", "variants_nll", "real")),
)
_PAIRED = (
    *("top_1", "nll", "ece", "d_within_val", "r_squared_val", "transfer", "brier", "nll_scaled", "ece_scaled"),
    *("aurc", "aurc_logit", "coverage_5", "many", "medium", "few", "auroc", "auroc_logit", "auroc_energy", "auroc_knn"),
    *("corrupted", "corrupted_nll", "corrupted_ece", "mce", "variants", "variants_nll", "real"),
)
_QUALITIES = {
    **dict.fromkeys(("top_1", "nll", "ece"), ""),
    **dict.fromkeys(("ece_scaled", "brier"), "calibration"),
    **dict.fromkeys(("aurc", "coverage_5"), "selective"),
    **dict.fromkeys(("many", "medium", "few"), "groups"),
    **dict.fromkeys(("auroc", "auroc_knn"), "ood"),
    **dict.fromkeys(("corrupted", "corrupted_ece", "mce"), "corruptions"),
    **dict.fromkeys(("variants", "real"), "variants"),
    **dict.fromkeys(("d_within_val", "r_squared_val", "transfer"), ""),
}
"""The columns of the opening table, and the suite that each comes from"""
_SAMPLED = {"top_1": "correct", "nll": "nll"}
"""Metrics that are means over samples: what `samples.npz` calls theirs"""


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
    num_classes, transfer_classes, class_counts = 0, None, list[int]()
    if measures:
        data = plan.config.data
        sets = (data.train_dataset, data.val_dataset)
        train = open_together(sets, data.format, data.classes, plan.further)[0]
        num_classes = plan.config.model.num_classes or train.num_classes
        class_counts = np.bincount(train.labels, minlength=train.num_classes).tolist()
        transfer_classes = open_further(plan.transfer[0], data.classes).class_names if plan.transfer else None
    for loss in plan.losses:
        runs = [run for run in measures if run.loss == loss]
        if not runs:
            continue
        values = {}
        for metric in METRICS:
            by_seed = [_at(measures[run], metric.path) for run in runs]
            if all(value is not None for value in by_seed):
                values[metric.key] = spread([float(value) for value in by_seed])
        criteria[loss] = {
            "seeds": [run.seed for run in runs],
            "metrics": values,
            "published": published(
                plan.config.model.arch, num_classes, plan.config.training.epochs, loss, transfer_classes, class_counts
            ),
        }
    differences = _differences(plan, criteria)
    return {
        "format": 1,
        "criteria": criteria,
        "differences": differences,
        "qualities": _qualities(criteria, differences),
        "failed": [
            {"run": f.run.name, "stage": f.stage, "status": f.status, "log": f.log, "tail": f.tail} for f in failures
        ],
        "missing": [run.name for run in plan.runs if run not in measures],
        "transfer": _transfer_settings(measures),
        "runs": {run.name: content for run, content in measures.items()},
        "settings": plan.settings(),
        **describe_environment("cpu" if plan.config.training.device == "cpu" else _device()),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`values`, their mean, and their sample standard deviation, None for a single one."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.fmean(values), "sd": deviation}


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
        names = list(columns[0]["cells"])
        lines += ["| criterion | " + " | ".join(column["title"] for column in columns) + " |"]
        lines += ["| --- |" + " ---: |" * len(columns)]
        for name in names:
            lines.append(f"| {name} | {' | '.join(column['cells'].get(name, '–') for column in columns)} |")
        lines += ["", summary["qualities"]["note"], ""]
    for title, keys in _TABLES:
        shown = [key for key in keys if any(key in row["metrics"] for row in criteria.values())]
        if shown:
            lines += [f"## {title}", "", *_table(criteria, shown), ""]
    if summary["transfer"]:
        lines += [summary["transfer"], ""]
        if any("transfer" in row["published"] for row in criteria.values()):
            lines += [TRANSFER_GRID, ""]
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
        known = row.get("published", {})
        if any(key in known for key in keys):
            cells = [
                f"{known[key] * _BY_KEY[key].scale:.{_BY_KEY[key].digits}f}" if key in known else "" for key in keys
            ]
            lines.append(f"| {name}, published ({SOURCE}) | | {' | '.join(cells)} |")
    return lines


def _qualities(criteria: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """The opening table: a column per quality that all criteria have, marked by the difference to the first one."""
    if not criteria:
        return {"columns": [], "note": ""}
    first = next(iter(criteria))
    columns = []
    for key, suite in _QUALITIES.items():
        if not all(key in row["metrics"] for row in criteria.values()):
            continue
        metric = _BY_KEY[key]
        cells = {}
        for name, row in criteria.items():
            mean = f"{row['metrics'][key]['mean'] * metric.scale:.{metric.digits}f}"
            found = differences.get(name, {}).get("metrics", {}).get(key)
            cells[name] = f"{mean} {_mark(metric, found)}".strip() if name != first else mean
        columns.append({"title": metric.title, "suite": suite, "cells": cells})
    note = (
        f"Means over seeds. Against {first}, by the 95% interval of the paired difference: ▲ better, ▼ worse, "
        "↑ higher, ↓ lower, = no difference that these runs show; no mark: not enough runs to say."
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
    keys = [key for key in _PAIRED if _has(differences, key)]
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
        return f"{mean} (one seed)"
    low, high = (f"{value * metric.scale:+.{metric.digits}f}" for value in interval)
    return f"**{mean}** [{low}, {high}]" if found["exceeds"] else f"no difference: {mean} [{low}, {high}]"


def _seeds_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"over {MOST_SEEDS}" if found["seeds_needed"] is None else str(found["seeds_needed"])


def _differences(plan: ComparisonPlan, criteria: Mapping[str, Any]) -> dict[str, Any]:
    """For each criterion but the first, its metrics minus the first one's, over the seeds that both have.

    `interval` is that of the mean difference: Student's over seeds; of one seed the bootstrap's over samples where the
    metric is a mean over them, else None. `exceeds` says whether 0 lies outside.
    """
    found: dict[str, Any] = {}
    if len(criteria) < 2:
        return found
    (first, base), *others = criteria.items()
    for name, row in others:
        seeds = [seed for seed in row["seeds"] if seed in base["seeds"]]
        metrics = {}
        for key in _PAIRED:
            if seeds and key in row["metrics"] and key in base["metrics"]:
                pairs = [
                    row["metrics"][key]["values"][row["seeds"].index(seed)]
                    - base["metrics"][key]["values"][base["seeds"].index(seed)]
                    for seed in seeds
                ]
                interval = needed = None
                if len(pairs) > 1:
                    interval, needed = paired_interval(pairs), seeds_needed(pairs)
                elif key in _SAMPLED:
                    interval = _over_samples(
                        plan, PlannedRun(name, seeds[0]), PlannedRun(first, seeds[0]), _SAMPLED[key]
                    )
                metrics[key] = {
                    **spread(pairs),
                    "interval": None if interval is None else [interval.low, interval.high],
                    "exceeds": None if interval is None else interval.exceeded,
                    "seeds_needed": needed,
                }
        if metrics:
            found[name] = {"seeds": seeds, "metrics": metrics}
    return found


def _over_samples(plan: ComparisonPlan, run: PlannedRun, base: PlannedRun, what: str) -> Interval | None:
    own, other = (read_sample_results(plan.folder(one) / "samples.npz") for one in (run, base))
    if own is None or other is None or len(own[what]) != len(other[what]):
        return None
    return bootstrap_interval(own[what] - other[what])


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


def _at(content: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = content
    for key in path:
        if value is None:
            return None
        # Suites came later than the format, and are there where they were asked for.
        value = value.get(key) if path[0] == "suites" else value[key]
    return value if value is None or math.isfinite(value) else None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
