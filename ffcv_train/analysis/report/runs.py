"""Reading what runs and comparisons left behind."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json

_HUGE = 1e300
"""Numbers from here on count as infinite"""


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder, read."""

    name: str
    folder: Path
    records: tuple[dict[str, Any], ...]
    """A line of log.jsonl each, in order; at least one"""
    params: dict[str, Any] = field(default_factory=dict)
    """params.json; empty where it is missing"""
    measures: dict[str, Any] = field(default_factory=dict)
    """measures.json, which comparisons write; empty where there is none"""
    notes: tuple[str, ...] = ()
    """What was wrong with the files, a sentence each"""

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The sections of its options, as far as they are any."""
        config = self.params.get("config")
        sections = config.items() if isinstance(config, dict) else ()
        return {name: section for name, section in sections if isinstance(section, dict)}

    @property
    def epochs(self) -> int | None:
        """Epochs that the run was to have; None where that is not known."""
        epochs = self.config.get("training", {}).get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def val_set(self) -> str:
        return str(self.config.get("data", {}).get("val_dataset", ""))


@dataclass(frozen=True, eq=False)
class Comparison:
    """A folder of ffcv-train compare."""

    folder: Path
    runs: tuple[Run, ...]
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    """Criteria, and which of `runs` are of each"""
    markdown: str
    """compare.md; empty where it is not written yet"""
    figure: Path | None
    notes: tuple[str, ...]
    qualities: dict[str, Any] = field(default_factory=dict)
    """What ffcv-train compare says in short: `columns` and a `note`; empty where it wrote none"""


def is_comparison(folder: Path) -> bool:
    """Whether ffcv-train compare wrote into `folder`."""
    return any((folder / name).is_file() for name in ("comparison.json", "compare.json"))


def read_run(folder: Path, name: str = "") -> Run:
    """A run from its log.jsonl; a last line that was cut off is left out, with a note.

    Raises `UserError` where there is no log, it has no epoch yet, or a line is no epoch's record.
    """
    log, notes = folder / "log.jsonl", []
    if not log.is_file():
        what = "is no run's folder: it has no log.jsonl" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; give a folder that ffcv-train train or ffcv-train compare wrote")
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}; check its rights") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            records.append({**_numbers(record), "epoch": int(record["epoch"])})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            if number < len(lines):
                raise UserError(f"{log} line {number} is not the record of an epoch; repair or remove it") from None
            notes.append(f"The last line of {log.name} is cut off and was left out.")
    if not records:
        raise UserError(f"{log} has no epoch yet; wait for the run's first one")
    params, problem = read_json(folder / "params.json")
    if problem:
        notes.append(f"{problem}, so its settings are not known.")
    measures, problem = read_json(folder / "measures.json")
    if problem and (folder / "measures.json").exists():
        notes.append(f"{problem} and was left out.")
    return Run(name or folder.resolve().name, folder, tuple(records), params, measures, tuple(notes))


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of an epoch's record: numbers, None where one is not finite; anything else is left out."""
    numbers = {key: value for key, value in record.items() if value is None or isinstance(value, int | float)}
    finite = {key: value if value is not None and abs(value) < _HUGE else None for key, value in numbers.items()}
    both = record.get("flip_averaged")
    return finite | ({"flip_averaged": _numbers(both)} if isinstance(both, dict) else {})


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs with different names: their folders', with the folders around them where two are alike."""
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice; give each run once")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_comparison(folder: Path) -> Comparison:
    """A comparison and those of its runs that have begun. Raises `UserError` where none has."""
    notes: list[str] = []
    runs: list[Run] = []
    groups: dict[str, list[int]] = {}
    summary, _ = read_json(folder / "compare.json")
    folders = sorted(path for path in (folder / "runs").glob("*_seed*") if path.is_dir())
    # The order of the table, then that of the names.
    order = list(summary.get("criteria", {}))
    folders.sort(key=lambda path: (order.index(c) if (c := criterion_of(path)) in order else len(order), path.name))
    for path in folders:
        try:
            run = read_run(path)
        except UserError as error:
            notes.append(f"{path.name} is not shown: {error}.")
            continue
        groups.setdefault(criterion_of(path), []).append(len(runs))
        runs.append(run)
    if not runs:
        raise UserError(f"no run of the comparison in {folder} has finished an epoch; wait for the first one")
    try:
        markdown = (folder / "compare.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        markdown = ""
        notes.append("The comparison has no table yet: ffcv-train compare writes it when it ends or is stopped.")
    failed = [str(record.get("run")) for record in summary.get("failed", [])]
    if failed:
        notes.append(f"Failed: {', '.join(failed)}; compare.md and logs/ say why.")
    missing = [str(name) for name in summary.get("missing", []) if name not in failed]
    if missing:
        notes.append(f"Not yet run when the table was written: {', '.join(missing)}.")
    figure = next((p for p in (folder / "compare.svg", folder / "compare.png") if p.is_file()), None)
    return Comparison(
        folder,
        tuple(runs),
        tuple((c, tuple(i)) for c, i in groups.items()),
        markdown,
        figure,
        tuple(notes),
        summary.get("qualities") or {},
    )


def criterion_of(folder: Path) -> str:
    """The criterion in the name of a comparison's run: "ce" of "ce_seed0"."""
    return folder.name.rpartition("_seed")[0]


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The mapping in a JSON file and "", or {} and what is wrong, as the beginning of a sentence."""
    if not path.is_file():
        return {}, f"{path.name} is missing"
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    return (content, "") if isinstance(content, dict) else ({}, f"{path.name} cannot be read")
