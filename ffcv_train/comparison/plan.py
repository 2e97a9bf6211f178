"""What ffcv-train compare is asked to do, checked before the first run starts."""

import dataclasses
import itertools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import open_data_sets, open_further, without_unread_list
from ffcv_train.evaluation.suites.run import check_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.evaluation.transfer import common_classes
from ffcv_train.losses import create_criterion
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.last_layer import need_last_layer
from ffcv_train.models.published import is_by_name
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, parse_json, write_json
from ffcv_train.training import setup
from ffcv_train.training.resume import differences

SETTINGS_FILE = "comparison.json"

_FREE = {"loss": ["name"], "training": ["seed", "resume"], "data": ["num_workers", "batches_ahead", "cache"]}
_FILES = (("data", "train_dataset"), ("data", "val_dataset"), ("data", "classes"), ("model", "weights"))


@dataclass(frozen=True)
class PlannedRun:
    """One training: a criterion from a seed."""

    loss: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.loss}_seed{self.seed}"


@dataclass(frozen=True)
class ComparisonPlan:
    """A resolved command line of ffcv-train compare."""

    config: RunConfig
    """Of every run, but for loss.name, training.seed and where it writes"""
    arguments: tuple[str, ...]
    """What every run is given besides the options that a comparison sets"""
    losses: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    transfer: tuple[Path, Path] | None
    """Training and test set of the linear probe"""
    dry_run: bool
    suites: SuiteOptions = field(default_factory=SuiteOptions)
    suite_words: tuple[str, ...] = ()
    """How `measure` is told of them"""
    runs_per_device: int = 1
    """How many go at the same time on each GPU, or on the CPU"""

    @property
    def further(self) -> tuple[str, ...]:
        """The data sets that are read besides those of training."""
        return (*self.suites.further, *map(str, self.transfer or ()))

    @property
    def training(self) -> RunConfig:
        """`config` as runs are given it: without data.classes where only `further` data sets may take it."""
        data = self.config.data
        return without_unread_list(self.config, (data.train_dataset, data.val_dataset), self.further)

    @property
    def runs(self) -> list[PlannedRun]:
        """Seed by seed, so that all criteria are there to be compared after the first."""
        return [PlannedRun(loss, seed) for seed, loss in itertools.product(self.seeds, self.losses)]

    def folder(self, run: PlannedRun) -> Path:
        """Where a run writes."""
        return self.out / "runs" / run.name

    def log(self, run: PlannedRun) -> Path:
        """What the run's processes print."""
        return self.out / "logs" / f"{run.name}.txt"

    def settings(self) -> dict[str, Any]:
        """The part of the configuration that all runs share, with absolute paths."""
        content = to_dict(self.config)
        del content["logging"]
        for section, names in _FREE.items():
            for name in names:
                del content[section][name]
        for section, name in _FILES:
            if content[section][name] and not is_by_name(content[section][name]):
                content[section][name] = str(Path(content[section][name]).resolve())
        return content


def train_command(plan: ComparisonPlan, run: PlannedRun) -> list[str]:
    """The command that trains `run`, or continues it where it stopped."""
    return [
        sys.executable,
        "-m",
        "ffcv_train",
        "train",
        *plan.arguments,
        *(["--data.classes="] if plan.training != plan.config else []),
        f"--loss.name={run.loss}",
        f"--training.seed={run.seed}",
        "--training.resume=auto",
        f"--logging.folder={plan.out / 'runs'}",
        f"--logging.run={run.name}",
    ]


def measure_command(plan: ComparisonPlan, run: PlannedRun) -> list[str]:
    """The command that measures a finished `run`."""
    folder = plan.folder(run)
    command = [sys.executable, "-m", "ffcv_train", "measure", f"--checkpoint={folder / 'final.pt'}"]
    command += [f"--output={folder / 'measures.json'}"]
    if plan.config.data.classes:  # a checkpoint's own list is no business of other data sets
        command += [f"--data.classes={plan.config.data.classes}"]
    if plan.transfer:
        command += [f"--transfer-train={plan.transfer[0]}", f"--transfer-val={plan.transfer[1]}"]
    return [*command, *plan.suite_words]


def check_plan(plan: ComparisonPlan) -> None:
    """Raise `UserError` for what would fail in a run hours later: data sets, network, output folder."""
    if "WORLD_SIZE" in os.environ:
        raise UserError("ffcv-train compare starts its own processes, a run per GPU; start it without torchrun")
    setup.check_config(plan.config)
    data = open_data_sets(plan.training)
    setup.check_length(plan.config, data, setup.batch_sizes(plan.config, 1))
    for loss in plan.losses:
        named = dataclasses.replace(plan.config.loss, name=loss)
        create_criterion(named, data.num_classes, plan.config.training.epochs, data.class_counts)
    check_suites(dataclasses.replace(plan.suites, classes=plan.config.data.classes), data.val, data.num_classes)
    if plan.transfer:
        common_classes(*(open_further(path, plan.config.data.classes) for path in plan.transfer))
    torch.manual_seed(0)
    model = create_model(plan.config.model, data.num_classes)
    need_last_layer(model, plan.config.validation.resolution[0], plan.config.model.arch, "a comparison's features")
    _check_folder(plan)


def claim_folder(plan: ComparisonPlan) -> None:
    """Make the output folder and write into it whose it is. Raises `UserError`."""
    with disk_errors(plan.out):
        for folder in (plan.out / "runs", plan.out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
    write_json(plan.out / SETTINGS_FILE, {"format": 1, "settings": plan.settings()})


def devices(config: RunConfig) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each run that goes at the same time; [None] on a CPU."""
    count = torch.cuda.device_count() if config.training.device != "cpu" else 0
    if not count:
        return [None]
    # torch counts from 0 what this variable leaves of the machine's GPUs.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return list(visible[:count] or map(str, range(count)))


def _check_folder(plan: ComparisonPlan) -> None:
    out = plan.out
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    file = out / SETTINGS_FILE
    if not file.exists():
        if any(out.iterdir()):
            raise UserError(f"--out {out} holds other files than a comparison's; name a new folder")
        return
    try:
        written = parse_json(file.read_text(encoding="utf-8"))["settings"]
        # Options that came later had their defaults.
        defaults, now = to_dict(RunConfig()), plan.settings()
        added = {
            section: {name: defaults[section][name] for name in options if name not in written.get(section, {})}
            for section, options in now.items()
        }
        before = {section: {**written.get(section, {}), **options} for section, options in added.items()}
        differing = differences(before, now)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} cannot be read as a comparison's settings; name a new folder with --out") from None
    if differing:
        raise UserError(
            f"--out {out} holds a comparison with other settings: {'; '.join(differing[:5])}; use the same, or name a "
            "new folder"
        )
