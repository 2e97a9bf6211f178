"""Tables of settings and of metrics."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ffcv_train.analysis.report.content import Table
from ffcv_train.analysis.report.runs import Run

_ABOUT = (
    "command",
    "started",
    "git",
    "device",
    "host",
    "cpu_count",
    "world_size",
    "global_batch",
    "batch_per_device",
    "steps_per_epoch",
    "peak_lr",
    "parameters",
    "num_classes",
    "train_samples",
    "val_samples",
)


def metrics_table(runs: Sequence[Run]) -> Table:
    """A row per run: its last validation, its best top-1, its speed."""
    columns = {
        "epochs": _epochs,
        "top-1 %": lambda run: _last(run, "top_1", 100, 2),
        "top-1 %, flip-averaged": lambda run: _last(run, "flip_averaged", 100, 2),
        "best top-1 %": _best,
        "top-5 %": lambda run: _last(run, "top_5", 100, 2),
        "NLL": lambda run: _last(run, "nll", 1, 4),
        "ECE": lambda run: _last(run, "ece", 1, 4),
        "training loss": lambda run: _last(run, "train_loss", 1, 4),
        "images/s": lambda run: _median(run, "images_per_s", "{:,.0f}"),
        "waiting": lambda run: _median(run, "data_wait", "{:.1%}"),
        "training time": lambda run: _duration(run, "seconds"),
        "validation time": lambda run: _duration(run, "val_seconds"),
        "memory, GB": _memory,
    }
    rows = [[run.name, *(column(run) for column in columns.values())] for run in runs]
    # A column that says nothing of any run is left out.
    kept = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != "–" for row in rows))]
    header = ["run", *columns]
    return Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def settings_tables(runs: Sequence[Run]) -> list[Table]:
    """The options in which runs differ, a column per run; then all, folded; then versions and machine, folded."""
    configs = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    names = [run.name for run in runs]

    def row(key: str) -> list[str]:
        return [key, *(text_of(config.get(key, "–")) for config in configs)]

    # logging says where a run wrote.
    differing = [r for key in keys if not key.startswith("logging.") and len(set((r := row(key))[1:])) > 1]
    tables = []
    if len(runs) > 1:
        tables.append(Table(["differing option", *names], differing, numeric=False))
    if keys:
        tables.append(Table(["option", *names], [row(key) for key in keys], "All options", folded=True, numeric=False))
    abouts = [{**{k: run.params[k] for k in _ABOUT if k in run.params}, **_versions(run)} for run in runs]
    about_keys = list(dict.fromkeys(key for about in abouts for key in about))
    rows = [[key, *(text_of(about.get(key, "–")) for about in abouts)] for key in about_keys]
    if rows:
        tables.append(Table(["", *names], rows, "Commands, machines and versions", folded=True, numeric=False))
    return tables


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value}."""
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }


def text_of(value: Any) -> str:
    """A setting as a table shows it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in ("", None) else str(value)


def _versions(run: Run) -> dict[str, Any]:
    versions = run.params.get("versions")
    return dict(versions) if isinstance(versions, Mapping) else {}


def _numbers(run: Run, key: str) -> list[float]:
    return [float(record[key]) for record in run.records if isinstance(record.get(key), int | float)]


def _last(run: Run, key: str, scale: float, digits: int) -> str:
    for record in reversed(run.records):
        if key in record:
            value = record[key]
            if key == "flip_averaged":
                value = value.get("top_1") if isinstance(value, Mapping) else None
            return "not finite" if value is None else f"{scale * float(value):.{digits}f}"
    return "–"


def _best(run: Run) -> str:
    found = [(float(r["top_1"]), -int(r["epoch"])) for r in run.records if isinstance(r.get("top_1"), int | float)]
    if not found:
        return "–"
    value, epoch = max(found)
    return f"{100 * value:.2f} (epoch {1 - epoch})"


def _epochs(run: Run) -> str:
    done = run.records[-1]["epoch"] + 1
    return str(done) if run.epochs in (None, done) else f"{done} of {run.epochs}"


def _median(run: Run, key: str, form: str) -> str:
    values = _numbers(run, key)
    return form.format(statistics.median(values)) if values else "–"


def _duration(run: Run, key: str) -> str:
    seconds = _numbers(run, key)
    if not seconds:
        return "–"
    minutes, rest = divmod(round(sum(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _memory(run: Run) -> str:
    values = _numbers(run, "peak_memory_gb")
    return f"{max(values):.1f}" if values else "–"
