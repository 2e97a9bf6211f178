"""Finding the checkpoint to resume from, and what two runs must share for one to continue the other."""

import datetime
import itertools
from pathlib import Path
from typing import Any

from ffcv_train.config.read import from_dict, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, parse_json


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint that training.resume names; with "auto" the newest `last.pt` of this configuration, if any.

    "auto" looks at the run logging.run where that is set, else at all runs in logging.folder whose params.json holds
    the same configuration.
    """
    wanted = config.training.resume
    if not wanted:
        return None
    if wanted != "auto":
        path = Path(wanted)
        return path / "last.pt" if path.is_dir() else path
    folder = Path(config.logging.folder)
    if config.logging.run:
        path = folder / config.logging.run / "last.pt"
        return path if path.is_file() else None
    own = comparable(to_dict(config))
    candidates = sorted(folder.glob("*/last.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in candidates if _configuration_of(path.parent) == own), None)


def claim_run(config: RunConfig) -> str:
    """Make the folder of a new run and return its name: date, time and architecture.

    No two runs get the same one, were they started in the same second. Raises `UserError` where it cannot be made.
    """
    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{config.model.arch.replace('/', '_')}"
    for name in itertools.chain([stamp], (f"{stamp}_{number}" for number in itertools.count(2))):
        folder = Path(config.logging.folder) / name
        # Made, not looked for: what is free now may be taken in a moment.
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return name
    raise AssertionError


def check_run_is_free(run: Path, checkpoint: Path) -> None:
    """Raise `UserError` where continuing `checkpoint` as `run` would overwrite another run."""
    log = run / "log.jsonl"
    if log.is_file() and log.stat().st_size and run.resolve() != checkpoint.resolve().parent:
        raise UserError(f"{run} holds another run than {checkpoint}; choose another --logging.run")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Which options differ, each as "section.key was X, is Y"."""
    return [
        f"{section}.{key} was {old.get(section, {}).get(key)}, is {value}"
        for section, values in new.items()
        for key, value in values.items()
        if old.get(section, {}).get(key) != value
    ]


def _configuration_of(run: Path) -> dict[str, Any] | None:
    try:
        path = run / "params.json"
        return comparable(to_dict(from_dict(RunConfig, parse_json(path.read_text())["config"], str(path))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return None


def comparable(config: dict[str, Any], *, files_may_move: bool = False) -> dict[str, Any]:
    """The part of a configuration (as `to_dict` gives it) that a resumed run must share with the first one.

    With `files_may_move` paths are not among it. How many images there are at once never is.
    """
    kept = {section: dict(values) for section, values in config.items() if section != "logging"}
    free = {
        "data": ["num_workers", "batches_ahead", "cache"],
        "training": ["resume", "device", "batch_size", "global_batch_size", "accumulate"],
        # Not channels_last: the optimizer's state has the memory format of the weights.
        "model": ["compile", "compile_mode", "grad_checkpointing"],
        "validation": ["batch_size"],
    }
    if files_may_move:
        free["data"] += ["train_dataset", "val_dataset", "classes"]
        free["model"] += ["weights"]
        free["distill"] = ["teacher"]
    for section, names in free.items():
        for name in names:
            kept.get(section, {}).pop(name, None)
    return kept
