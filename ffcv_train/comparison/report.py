"""The comparison's outcome: compare.json, compare.md, compare.png and compare.svg."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.comparison.columns import _BY_KEY, METRICS, Metric
from ffcv_train.comparison.figure import draw
from ffcv_train.comparison.plan import Plan, Run
from ffcv_train.comparison.published import SOURCE, published
from ffcv_train.comparison.run import Failure, is_finished
from ffcv_train.data.open import open_data_set
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
)
_PAIRED = ("top_1", "nll", "ece", "d_within_val", "r_squared_val", "transfer")


def collect(plan: Plan) -> dict[Run, dict[str, Any]]:
    """The measures of the runs that are finished, in the plan's order."""
    found = {}
    for run in plan.runs:
        if is_finished(plan, run):
            found[run] = json.loads((plan.folder(run) / "measures.json").read_text(encoding="utf-8"))
    return found


def summarise(plan: Plan, measures: Mapping[Run, Mapping[str, Any]], failures: Sequence[Failure]) -> dict[str, Any]:
    """What compare.json holds: per criterion the values by seed, their mean and sample standard deviation."""
    criteria: dict[str, Any] = {}
    num_classes, transfer_classes = 0, None
    if measures:
        beton = open_data_set(plan.config.data.train_dataset, plan.config.data.format)
        names = beton.class_names
        num_classes = plan.config.model.num_classes or (len(names) if names is not None else 0)
        transfer_classes = (
            open_data_set(str(plan.transfer[0]), plan.config.data.format).class_names if plan.transfer else None
        )
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
                plan.config.model.arch, num_classes, plan.config.training.epochs, loss, transfer_classes
            ),
        }
    return {
        "format": 1,
        "criteria": criteria,
        "differences": _differences(criteria),
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


def write_report(plan: Plan, summary: Mapping[str, Any]) -> list[Path]:
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


def to_markdown(plan: Plan, summary: Mapping[str, Any]) -> str:
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
    for title, keys in _TABLES:
        shown = [key for key in keys if any(key in row["metrics"] for row in criteria.values())]
        if shown:
            lines += [f"## {title}", "", *_table(criteria, shown), ""]
    if summary["transfer"]:
        lines += [summary["transfer"], ""]
    if summary["differences"]:
        first = next(iter(criteria))
        lines += [
            f"## Difference to {first}, seed by seed",
            "",
            "Runs of one seed start from the same weights and see the same crops in the same order.",
            "",
            *_table(summary["differences"], [k for k in _PAIRED if _has(summary["differences"], k)], signed=True),
            "",
        ]
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


def _differences(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """For each criterion but the first, its metrics minus the first one's, over the seeds that both have."""
    found: dict[str, Any] = {}
    if len(criteria) < 2:
        return found
    (_, base), *others = criteria.items()
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
                metrics[key] = spread(pairs)
        if metrics:
            found[name] = {"seeds": seeds, "metrics": metrics}
    return found


def _has(rows: Mapping[str, Any], key: str) -> bool:
    return any(key in row["metrics"] for row in rows.values())


def _transfer_settings(measures: Mapping[Run, Mapping[str, Any]]) -> str:
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
        value = value[key]
    return value if value is None or math.isfinite(value) else None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
