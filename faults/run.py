"""Faults injected into real training runs, counted.

    python -m faults.run --seed 0 --share 1

Each trial trains a small network in a process of its own, does something to it, looks how it ends, and resumes it where
that is promised: the end must be that of a run to which nothing happened, bit for bit. What happens, and when, is drawn
from the seed, the kind and the trial's number; what the moment hits depends on the machine. The table shows how often
each kind held; exit status 1 where one did not.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from faults import conversions, hosts, ranks
from faults import kinds as one_process
from faults.kinds import Bench, Kind, Skipped
from ffcv_train.cli.main import run_main
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import duration

KINDS = [*one_process.KINDS, *conversions.KINDS, *ranks.KINDS, *hosts.KINDS]


def main(argv: Sequence[str]) -> None:
    """Parse, inject, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (0)")
    parser.add_argument("--share", type=float, default=1.0, help="of each kind's trials, at least one of each (1)")
    parser.add_argument("--only", default="", help="kinds whose name holds this text")
    arguments = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if arguments.only in kind.name]
    if not kinds:
        raise UserError(f"no kind of fault is named {arguments.only!r}; --help lists none, faults/kinds.py does")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    start = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        bench = Bench.set_up(root)
        found = {kind: inject(bench, kind, trials(kind, arguments.share), arguments.seed) for kind in kinds}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    failed = show(found)
    print(f"seed {arguments.seed}, {duration(time.monotonic() - start)}")
    sys.exit(1 if failed else 0)


def trials(kind: Kind, share: float) -> int:
    """How often `kind` is tried."""
    return max(1, round(kind.trials * share))


def inject(bench: Bench, kind: Kind, count: int, seed: int) -> list[list[str]]:
    """What did not hold in each trial."""
    outcomes = []
    for number in range(count):
        folder = Path(tempfile.mkdtemp(dir=bench.root))
        try:
            outcomes.append(kind.trial(bench, folder, random.Random(f"{seed} {kind.name} {number}")))
        except Skipped as reason:
            print(f"{kind.name}: not tried: {reason}", file=sys.stderr, flush=True)
            break
        print(f"{kind.name} {number + 1}/{count}: {'; '.join(outcomes[-1]) or 'held'}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def show(found: dict[Kind, list[list[str]]]) -> int:
    """Print the table; how many trials did not hold."""
    table = Table("fault", "what is promised", "tried", "held")
    failed = 0
    for kind, outcomes in found.items():
        held = sum(not outcome for outcome in outcomes)
        failed += len(outcomes) - held
        table.add_row(kind.name, kind.promise, str(len(outcomes)), str(held))
    Console(width=120).print(table)
    return failed


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
