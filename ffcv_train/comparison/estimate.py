"""How long a comparison will take: from finished runs where there are some, else from steps measured here."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch
from rich.console import Console

from ffcv_train.comparison.plan import ComparisonPlan, PlannedRun
from ffcv_train.comparison.run import is_finished, slots_of
from ffcv_train.data.open import open_data_sets
from ffcv_train.doctor.examination import DoctorOptions, examine
from ffcv_train.system.distributed import process_group
from ffcv_train.system.files import parse_json
from ffcv_train.system.progress import duration

_SECONDS = 3.0
_FORWARD_SHARE = 1 / 3
"""Of a training step's time that its forward pass takes: the backward pass is two products for its one"""


@dataclass(frozen=True)
class RunEstimate:
    """Seconds of one run, and where the figure comes from."""

    seconds: float
    source: str


def estimate_run(plan: ComparisonPlan, to_go: int) -> RunEstimate:
    """Seconds of one whole run, training and validations, of the runs `to_go`.

    Where no run is finished, it is measured for some seconds, on the cores that a run will have beside the others.
    """
    past = [seconds for run in plan.runs if (seconds := _logged_seconds(plan, run)) is not None]
    if past:
        return RunEstimate(sum(past) / len(past), f"mean of {len(past)} finished runs")
    named = dataclasses.replace(plan.config.loss, name=plan.losses[0])
    config = dataclasses.replace(plan.training, loss=named)
    slots = slots_of(plan, to_go)
    cores = slots[0].cores
    with _on_cores(cores), process_group(config.training.device) as process, contextlib.redirect_stdout(io.StringIO()):
        report = examine(DoctorOptions(config, None, _SECONDS, 1), process)
    training = report["training_seconds"]
    last = report["stages"][-1]
    # Training's last side gives the cost of a pixel; validation has forward passes only, two with flip averaging.
    validation = config.validation
    pixels = (validation.resolution[0] / last["resolution"]) ** 2
    views = 2 if validation.lr_tta else 1
    images = len(open_data_sets(config).val)
    passes = -(-config.training.epochs // validation.every)
    once = images * views * pixels * _FORWARD_SHARE / last["step_images_per_s"]
    source = f"{plan.losses[0]} measured for some seconds, validation reckoned from it"
    if len(slots) > 1:
        source += ", on a run's share of the cores" if cores else ", on all cores"
        if not cores or len({slot.device for slot in slots}) < len(slots):
            source += ", alone: a lower bound"
    return RunEstimate(training + passes * once, source)


def print_plan(plan: ComparisonPlan, console: Console | None = None) -> None:
    """Print the runs, which of them are finished, and about how long the others will take."""
    console = console or Console(highlight=False)
    todo = [run for run in plan.runs if not is_finished(plan, run)]
    for run in plan.runs:
        console.print(f"{run.name:<32} {'to do' if run in todo else 'finished'}", markup=False)
    if not todo:
        console.print("nothing is left to train; without --dry-run the report is written again")
        return
    slots = len(slots_of(plan, len(todo)))
    if plan.config.data.format != "beton" and len(todo) == len(plan.runs):
        console.print(f"{slots} at a time; there is no estimate of time for data.format={plan.config.data.format}")
        return
    estimate = estimate_run(plan, len(todo))
    rounds = -(-len(todo) // slots)
    console.print(
        f"about {duration(estimate.seconds)} a run ({estimate.source}), {slots} at a time: about "
        f"{duration(rounds * estimate.seconds)} for {len(todo)} runs; start-up and measuring come on top",
        soft_wrap=True,
    )


@contextlib.contextmanager
def _on_cores(cores: Set[int]) -> Iterator[None]:
    """Keep this thread, those that it starts and PyTorch's to `cores`; empty: as they are."""
    if not cores:
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(min(threads, len(cores)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, before)


def _logged_seconds(plan: ComparisonPlan, run: PlannedRun) -> float | None:
    """Training and validation seconds that a finished run logged; None where it logged no whole run."""
    folder = plan.folder(run)
    if not (folder / "final.pt").is_file():
        return None
    try:
        records = [parse_json(text) for text in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        if len(records) != plan.config.training.epochs:
            return None
        return sum(record["seconds"] + record.get("val_seconds", 0.0) for record in records)
    except (OSError, ValueError, KeyError, TypeError):
        return None
