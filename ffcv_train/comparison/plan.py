"""What compare.py is asked to do, checked before the first run starts."""

import argparse
import dataclasses
import itertools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffcv_train import build
from ffcv_train.config import RunConfig, load_config, to_dict
from ffcv_train.data.data_set import open_data_set
from ffcv_train.errors import UserError
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.models.factory import create_model
from ffcv_train.models.last_layer import need_last_layer
from ffcv_train.records import disk_errors, write_json
from ffcv_train.resume import differences
from ffcv_train.transfer import common_classes

ROOT = Path(__file__).resolve().parents[2]
SETTINGS_FILE = "comparison.json"

DESCRIPTION = """Train every criterion from every seed with otherwise equal settings, and compare what comes out.

python compare.py --config-file cifar_configs/cifar10_resnet20.yaml --losses ce,ls,maxsup --seeds 0,1,2 \\
    --out comparison --data.train_dataset=train.beton --data.val_dataset=val.beton

Each run is trained by train_imagenet.py, one at a time per GPU (on a CPU, one at a time), then measured. Finished runs
are kept: the same command continues an interrupted comparison, and with more criteria or seeds it extends one.
"""

# What tells the runs of one comparison apart, or says where and how fast they run, but not what is trained.
_OWN_OPTIONS = ("loss.name", "training.seed", "training.resume", "logging.folder", "logging.run")
_FREE = {"loss": ["name"], "training": ["seed", "resume"], "data": ["num_workers", "batches_ahead", "cache"]}
_FILES = (("data", "train_dataset"), ("data", "val_dataset"), ("model", "weights"))


@dataclass(frozen=True)
class Run:
    """One training: a criterion from a seed."""

    loss: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.loss}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A resolved command line of compare.py."""

    config: RunConfig
    """Of every run, but for loss.name, training.seed and where it writes"""
    arguments: tuple[str, ...]
    """What train_imagenet.py is given besides the options that this script sets"""
    losses: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    transfer: tuple[Path, Path] | None
    """Training and test set of the linear probe"""
    dry_run: bool

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that all criteria are there to be compared after the first."""
        return [Run(loss, seed) for seed, loss in itertools.product(self.seeds, self.losses)]

    def folder(self, run: Run) -> Path:
        """Where a run writes."""
        return self.out / "runs" / run.name

    def log(self, run: Run) -> Path:
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
            if content[section][name]:
                content[section][name] = str(Path(content[section][name]).resolve())
        return content


def train_command(plan: Plan, run: Run) -> list[str]:
    """The command that trains `run`, or continues it where it stopped."""
    return [
        sys.executable,
        str(ROOT / "train_imagenet.py"),
        *plan.arguments,
        f"--loss.name={run.loss}",
        f"--training.seed={run.seed}",
        "--training.resume=auto",
        f"--logging.folder={plan.out / 'runs'}",
        f"--logging.run={run.name}",
    ]


def measure_command(plan: Plan, run: Run) -> list[str]:
    """The command that measures a finished `run`."""
    folder = plan.folder(run)
    command = [sys.executable, "-m", "ffcv_train.comparison.measure", f"--checkpoint={folder / 'final.pt'}"]
    command += [f"--output={folder / 'measures.json'}"]
    if plan.transfer:
        command += [f"--transfer-train={plan.transfer[0]}", f"--transfer-val={plan.transfer[1]}"]
    return command


def parse_plan(argv: Sequence[str]) -> Plan:
    """Resolve compare.py's arguments. Raises `UserError` for what does not fit, as far as that shows without data."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own = parser.add_argument_group("comparison")
    own.add_argument("--losses", metavar="A,B,…", help=f"criteria: {', '.join(CRITERIA)}")
    own.add_argument("--seeds", metavar="0,1,…", default="0,1,2", help="seeds of every criterion [0,1,2]")
    own.add_argument("--out", metavar="DIR", help="folder of the comparison: runs, tables, figure")
    own.add_argument("--transfer-train", metavar="BETON", help="data set that a linear probe is fitted to")
    own.add_argument("--transfer-val", metavar="BETON", help="data set that the linear probe is tested on")
    own.add_argument("--dry-run", action="store_true", help="print the plan and an estimate of its time, train nothing")
    options, rest = parser.parse_known_args(list(argv))
    config = load_config(RunConfig, rest, DESCRIPTION + "\n" + parser.format_help())
    for key in _OWN_OPTIONS:
        if any(word == f"--{key}" or word.startswith(f"--{key}=") for word in rest):
            raise UserError(f"compare.py sets {key} itself; drop --{key}, and use --losses, --seeds and --out")
    if not options.out:
        raise UserError("nowhere to write the comparison to; give a folder with --out DIR")
    transfer = (options.transfer_train, options.transfer_val)
    if any(transfer) and not all(transfer):
        raise UserError("--transfer-train and --transfer-val belong together; give both or neither")
    return Plan(
        config=config,
        arguments=tuple(rest),
        losses=_losses(options.losses),
        seeds=_seeds(options.seeds),
        out=Path(options.out),
        transfer=(Path(transfer[0]), Path(transfer[1])) if all(transfer) else None,
        dry_run=options.dry_run,
    )


def check_plan(plan: Plan) -> None:
    """Raise `UserError` for what would fail in a run hours later: data sets, network, output folder."""
    if "WORLD_SIZE" in os.environ:
        raise UserError("compare.py starts its own processes, a run per GPU; start it without torchrun")
    build.check_config(plan.config)
    data = build.open_data_sets(plan.config)
    build.check_length(plan.config, data, build.batch_sizes(plan.config, 1))
    for loss in plan.losses:
        named = dataclasses.replace(plan.config.loss, name=loss)
        create_criterion(named, data.num_classes, plan.config.training.epochs)
    if plan.transfer:
        common_classes(*(open_data_set(str(path), plan.config.data.format) for path in plan.transfer))
    torch.manual_seed(0)
    model = create_model(plan.config.model, data.num_classes)
    need_last_layer(model, plan.config.validation.resolution[0], plan.config.model.arch, "a comparison's features")
    _check_folder(plan)


def claim_folder(plan: Plan) -> None:
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


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["python", *sys.argv])


def _losses(text: str | None) -> tuple[str, ...]:
    names = _items(text, "--losses", "criteria", "ce,ls,maxsup")
    for name in names:
        if name not in CRITERIA:
            raise UserError(f"--losses names {name!r}, which is no criterion; there are {', '.join(CRITERIA)}")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    names = _items(text, "--seeds", "seeds", "0,1,2")
    if not all(name.isascii() and name.isdigit() and int(name) < 2**31 for name in names):
        raise UserError(f"--seeds must be whole numbers from 0 to 2147483647, such as 0,1,2, not {text!r}")
    seeds = tuple(map(int, names))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds names a seed twice: {text!r}; name each once")
    return seeds


def _items(text: str | None, option: str, what: str, example: str) -> tuple[str, ...]:
    items = tuple(part.strip() for part in (text or "").split(","))
    if not all(items):
        raise UserError(
            f"{option} must name {what} separated by commas, such as {option} {example}, not {text or ''!r}"
        )
    for item in items:
        if items.count(item) > 1:
            raise UserError(f"{option} names {item!r} twice; name each once")
    return items


def _check_folder(plan: Plan) -> None:
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
        before = json.loads(file.read_text(encoding="utf-8"))["settings"]
        differing = differences(before, plan.settings())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} cannot be read as a comparison's settings; name a new folder with --out") from None
    if differing:
        raise UserError(
            f"--out {out} holds a comparison with other settings: {'; '.join(differing[:5])}; use the same, or name a "
            "new folder"
        )
