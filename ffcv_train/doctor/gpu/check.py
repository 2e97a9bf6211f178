"""The check: its rows, one after the other, and what they found as plain values that JSON can say."""

import contextlib
import functools
import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ffcv_train.doctor.gpu import kernels, loading, ranks, runs, speed, steps, values
from ffcv_train.doctor.gpu.bench import Bench, prepare
from ffcv_train.doctor.gpu.figures import Figure, NotJudged
from ffcv_train.system.distributed import Process, from_all_ranks, from_rank_0, process_group, this_process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError

Result = Literal["holds", "fails", "left out", "not judged"]
MINUTES = 5.0
_OF_RANKS_SECONDS = 60.0
"""Kept for the rows of several processes, which come last"""
_MOST_TOLD = 600
_LEFT_OUT = "no time was left: raise --minutes, or choose the row with --rows"


@dataclass(frozen=True)
class Row:
    """A named proof: `find` measures, the figures judge. Of a group, `group: name`, all can be asked for at once."""

    name: str
    proves: str
    find: Callable[[Bench], list[Figure]]


def _timed(case: speed.Case) -> Row:
    return Row(f"speed: {case}", "the step is as fast as a plain loop", functools.partial(speed.step, case=case))


ROWS = (
    Row("loader", ".beton batches are the CPU's, byte for byte, behind a busy stream", loading.beton_batches),
    Row("image files", "so are batches of image files", loading.image_file_batches),
    Row("device decode", "data.decode=device gives the host's samples and crops", loading.decoded_on_device),
    Row("augmentation", "within a level of the CPU's", values.augmentation),
    Row("criteria", "losses and gradients are float64's on a CPU", values.criteria),
    Row("evaluation", "metrics are the CPU's", values.evaluation),
    Row("ten steps", "a ResNet-18 learns what it learns on a CPU (no TF32)", steps.ten_steps),
    Row("step's options", "so do clipping, passes and averaged weights", steps.clipping_passes_averages),
    Row("overflow", "an fp16 step that overflows at first spoils nothing", steps.overflow),
    Row("resume", "a run goes from a CPU to the device and back", runs.resume),
    Row("memory", "too little memory is said in a sentence", runs.out_of_memory),
    Row("no waits", "no step of a recipe makes the host wait", kernels.no_waits),
    Row("layout", "no kernel changes the layout of activations", kernels.layout),
    *(_timed(case) for case in speed.CASES if not case.compiled),
    Row("overlap", "the loader costs the step nothing", speed.loader_and_step),
    Row("FFCV", "the step is as fast as FFCV's published runs", speed.beside_ffcv),
    # What takes minutes, and is an option.
    Row("compile", "one graph per resolution, no breaks, equal logits", kernels.compilation),
    Row("CUDA graphs", "steps that are replayed learn what steps learn", kernels.replayed),
    *(_timed(case) for case in speed.CASES if case.compiled),
)
RANKS = {
    "ranks": "N ranks learn what one device learns of the N-fold batch",
    "death": "no rank outlives one that is killed",
}


def names() -> list[str]:
    """What can be asked for: rows, or groups of them; those of several processes last."""
    return list(dict.fromkeys([*(row.name.partition(":")[0] for row in ROWS), *RANKS]))


def check(
    device: str,
    wanted: Sequence[str],
    report: Callable[[str], None],
    minutes: float = MINUTES,
    keep: Callable[[dict[str, Any]], None] = lambda findings: None,
) -> dict[str, Any] | None:
    """Run the rows `wanted`, of `names()`, on this process's device, and under torchrun those of several processes.

    `device` is "auto", "cpu" or "cuda"; `report` is told what comes next. No row is begun after `minutes`, and that
    which is under way then is finished. Returns the findings on rank 0, None on the others. `keep` gets rank 0's own
    before the processes meet, of which this one may not come back. Raises `UserError` where there is no such device.
    """
    start = time.monotonic()
    # The processes meet after the rows of one device, which know of no others.
    process = this_process(device)
    of_ranks = [name for name in RANKS if name in wanted]
    end = start + 60 * minutes
    kept = min(_OF_RANKS_SECONDS, 20 * minutes) if process.world_size > 1 and of_ranks else 0.0

    def findings(everyone: Sequence[list[dict[str, Any]]], devices: Sequence[str]) -> dict[str, Any]:
        rows = [_merged(list(of_row)) for of_row in zip(*everyone, strict=True)]
        return {
            "format": 1,
            "holds": all(row["result"] != "fails" for row in rows),
            "rows": rows,
            "devices": list(devices),
            "seconds": time.monotonic() - start,
            "minutes": minutes,
            **describe_environment(process.device),
        }

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        report("synthetic images")
        bench = prepare(process.device, Path(name), end - kept)
        found = [_of_one_device(row, bench, report) for row in ROWS if row.name.partition(":")[0] in wanted]
        if process.world_size == 1:
            found += [_row(row, RANKS[row], "not judged", "one process: start it with torchrun") for row in of_ranks]
            return findings([found], [str(process.device)])
        alone = ranks.on_one_device(bench, process.world_size) if "ranks" in of_ranks else ""
        if process.is_main:
            unfinished = [_row(row, RANKS[row], "fails", "the processes did not come to its end") for row in of_ranks]
            keep(findings([[*found, *unfinished]], [str(process.device)]))
        rows: list[dict[str, Any]] = []
        try:
            with process_group(device):
                for row in of_ranks:
                    rows.append(_of_all_ranks(row, bench, process, alone, end, report))
                everyone = from_all_ranks(process, [*found, *rows])
                devices = from_all_ranks(process, str(process.device))
        except (UserError, RuntimeError) as error:
            lost = of_ranks[len(rows) :]
            if not process.is_main or not lost:
                raise
            everyone = [[*found, *rows, *(_failed(row, RANKS[row], error) for row in lost)]]
            devices = [str(process.device)]
    return findings(everyone, devices) if process.is_main else None


def _of_one_device(row: Row, bench: Bench, report: Callable[[str], None]) -> dict[str, Any]:
    """The row's findings; whatever it raises is one."""
    if bench.out_of_time:
        return _row(row.name, row.proves, "left out", _LEFT_OUT)
    report(row.name)
    start = time.monotonic()
    try:
        found = _judged(row.name, row.proves, row.find(bench))
    except Exception as error:
        found = _failed(row.name, row.proves, error)
    _tidy()
    return found | {"seconds": time.monotonic() - start}


def _of_all_ranks(
    name: str,
    bench: Bench,
    process: Process,
    alone: ranks.Weights | str,
    end: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """The row's findings; what this rank alone raises parts it from the others, who wait for it."""
    if from_rank_0(time.monotonic() >= end):
        return _row(name, RANKS[name], "left out", _LEFT_OUT)
    report(name)
    start = time.monotonic()
    try:
        figures = ranks.equal_weights(bench, process, alone) if name == "ranks" else ranks.death(bench, process)
        found = _judged(name, RANKS[name], figures)
    except (NotJudged, ranks.AgreedError) as error:
        found = _failed(name, RANKS[name], error)
    return found | {"seconds": time.monotonic() - start}


def _tidy() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        # After an illegal access of a kernel the device does nothing any more, and every row says so.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _judged(name: str, proves: str, figures: list[Figure]) -> dict[str, Any]:
    failed = [figure for figure in figures if not figure.holds]
    return _row(name, proves, "fails" if failed else "holds", "; ".join(map(str, failed or figures)), figures)


def _failed(name: str, proves: str, error: Exception) -> dict[str, Any]:
    """What a row has raised: why it proves nothing here, or what went wrong."""
    if isinstance(error, NotJudged):
        return _row(name, proves, "not judged", str(error), error.figures)
    told = " ".join(str(error).split()) or type(error).__name__
    if len(told) > _MOST_TOLD:  # a compiler's, say; the traceback has all of it
        told = f"{told[: _MOST_TOLD - 1]}…"
    head = "" if isinstance(error, UserError | RuntimeError) else f"{type(error).__name__}: "
    return _row(name, proves, "fails", head + told) | {"traceback": "".join(traceback.format_exception(error))}


def _row(name: str, proves: str, result: Result, told: str, figures: Sequence[Figure] = ()) -> dict[str, Any]:
    plain = [{"what": f.what, "value": f.value, "most": f.most, "least": f.least} for f in figures]
    return {"row": name, "proves": proves, "result": result, "told": told, "figures": plain}


def _merged(of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of all ranks': it fails where it fails on one, and tells of the first such."""
    for result in ("fails", "left out", "not judged"):
        for rank, row in enumerate(of_ranks):
            if row["result"] == result:
                told = f"rank {rank}: {row['told']}" if len(of_ranks) > 1 else row["told"]
                return row | {"told": told, "figures_of_ranks": [other["figures"] for other in of_ranks]}
    return of_ranks[0] | {"figures_of_ranks": [row["figures"] for row in of_ranks]}
