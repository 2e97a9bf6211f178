"""Compare criteria: train each from every seed with otherwise equal settings, measure, tabulate.

ffcv-train compare --config-file cifar_configs/cifar10_resnet20.yaml --losses ce,ls,maxsup --seeds 0,1,2 \
    --out comparison --data.train_dataset=train.beton --data.val_dataset=val.beton
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.cli.measure import TRANSFER, add_measure_options, transfer_files
from ffcv_train.cli.presets import load_run_config
from ffcv_train.cli.suite_arguments import suite_options, suite_words, whole
from ffcv_train.comparison.estimate import print_plan
from ffcv_train.comparison.plan import ComparisonPlan, check_plan, claim_folder
from ffcv_train.comparison.report import read_measures, summarise_runs, write_report
from ffcv_train.comparison.run import Interrupted, run_all
from ffcv_train.losses import CRITERIA
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

DESCRIPTION = """Train every criterion from every seed with otherwise equal settings, and compare what comes out.

ffcv-train compare --config-file cifar_configs/cifar10_resnet20.yaml --losses ce,ls,maxsup --seeds 0,1,2 \\
    --out comparison --data.train_dataset=train.beton --data.val_dataset=val.beton

Each run is trained by ffcv-train train, one at a time per GPU (on a CPU, one at a time) unless --runs-per-device says
more, then measured. Finished runs are kept: the same command continues an interrupted comparison, and with more
criteria or seeds it extends one.
"""

# What tells the runs of one comparison apart, or says where and how fast they run, but not what is trained.
_OWN_OPTIONS = ("loss.name", "training.seed", "training.resume", "logging.folder", "logging.run")


def parse_plan(argv: Sequence[str]) -> ComparisonPlan:
    """Resolve the command's arguments. Raises `UserError` for what does not fit, as far as that shows without data."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own = parser.add_argument_group("comparison")
    own.add_argument("--losses", metavar="A,B,…", help=f"criteria: {', '.join(CRITERIA)}")
    own.add_argument("--seeds", metavar="0,1,…", default="0,1,2", help="seeds of every criterion [0,1,2]")
    own.add_argument("--out", type=expand_path, metavar="DIR", help="folder of the comparison: runs, tables, figure")
    own.add_argument(
        "--runs-per-device",
        metavar="N",
        default="1",
        help="runs at the same time on each GPU, or on the CPU: several where one leaves it idle [1]",
    )
    add_measure_options(own)
    own.add_argument("--dry-run", action="store_true", help="print the plan and an estimate of its time, train nothing")
    options, rest = parser.parse_known_args(list(argv))
    config = load_run_config(rest, DESCRIPTION + "\n" + parser.format_help()).config
    for key in _OWN_OPTIONS:
        if any(word == f"--{key}" or word.startswith(f"--{key}=") for word in rest):
            raise UserError(f"ffcv-train compare sets {key} itself; drop --{key}, and use --losses, --seeds and --out")
    if not options.out:
        raise UserError("nowhere to write the comparison to; give a folder with --out DIR")
    return ComparisonPlan(
        config=config,
        arguments=tuple(rest),
        losses=_losses(options.losses),
        seeds=_seeds(options.seeds),
        out=Path(options.out),
        transfer=transfer_files(options),
        dry_run=options.dry_run,
        runs_per_device=_runs_per_device(options.runs_per_device),
        suites=suite_options(options, dataclasses.asdict(config.data), beside=[TRANSFER]),
        suite_words=tuple(suite_words(options)),
    )


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


def _runs_per_device(text: str) -> int:
    count = whole(text, "--runs-per-device")
    if not count:
        raise UserError("--runs-per-device must be at least 1")
    return count


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


def main(argv: Sequence[str]) -> None:
    """Parse, check, run, report."""
    plan = parse_plan(argv)
    check_plan(plan)
    if plan.dry_run:
        print_plan(plan)
        return
    claim_folder(plan)
    try:
        failures = run_all(plan)
    except Interrupted as stopped:
        write_report(plan, summarise_runs(plan, read_measures(plan), []))
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_status)
    for path in write_report(plan, summarise_runs(plan, read_measures(plan), failures)):
        print(path)
    if failures:
        names = ", ".join(failure.run.name for failure in failures)
        raise UserError(
            f"{len(failures)} of {len(plan.runs)} runs failed ({names}), the others are in the report; the reasons "
            "stand above, and the same command tries these again"
        )
