"""The check: its rows, one after the other, and what they found as plain values that JSON can say."""

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
from ffcv_train.system.distributed import Process, from_all_ranks, process_group, this_process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError

Result = Literal["holds", "fails", "not judged"]


@dataclass(frozen=True)
class Row:
    """A named proof: `find` measures, the figures judge."""

    name: str
    proves: str
    find: Callable[[Bench], list[Figure]]


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
    Row("compile", "one graph per resolution, no breaks, equal logits", kernels.compilation),
    Row("speed", "the step is as fast as a plain loop", speed.steps),
    Row("overlap", "the loader costs the step nothing", speed.loader_and_step),
)
RANKS = {
    "ranks": "N ranks learn what one device learns of the N-fold batch",
    "death": "no rank outlives one that is killed",
}


def names() -> list[str]:
    """Of all rows, those of several processes last."""
    return [*(row.name for row in ROWS), *RANKS]


def check(device: str, wanted: Sequence[str], report: Callable[[str], None]) -> dict[str, Any] | None:
    """Run the rows `wanted` on this process's device, and under torchrun those of several processes.

    `device` is "auto", "cpu" or "cuda"; `report` is told what comes next. Returns the findings on rank 0, None on the
    others. Raises `UserError` where there is no such device.
    """
    start = time.monotonic()
    # The processes meet after the rows of one device, which know of no others.
    process = this_process(device)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        report("synthetic images")
        bench = prepare(process.device, Path(name))
        found = []
        for row in ROWS:
            if row.name in wanted:
                report(row.name)
                found.append(_tried(row.name, row.proves, lambda row=row: row.find(bench)))  # type: ignore[misc]
        if process.world_size > 1:
            alone = None
            if "ranks" in wanted:
                alone = ranks.on_one_device(bench, process.world_size)
            with process_group(device) as process:
                found += _of_all_ranks(bench, process, alone, wanted, report)
                everyone = from_all_ranks(process, found)
                devices = from_all_ranks(process, str(process.device))
        else:
            found += [
                _row(row, proves, "not judged", "one process: start it with torchrun", [])
                for row, proves in RANKS.items()
                if row in wanted
            ]
            everyone, devices = [found], [str(process.device)]
    if not process.is_main:
        return None
    rows = [_merged(list(of_row)) for of_row in zip(*everyone, strict=True)]
    return {
        "format": 1,
        "holds": all(row["result"] != "fails" for row in rows),
        "rows": rows,
        "devices": devices,
        "seconds": time.monotonic() - start,
        **describe_environment(process.device),
    }


def _of_all_ranks(
    bench: Bench, process: Process, alone: ranks.Weights | None, wanted: Sequence[str], report: Callable[[str], None]
) -> list[dict[str, Any]]:
    found = []
    for name, proves in RANKS.items():
        if name in wanted:
            report(name)
            if name == "ranks":
                assert alone is not None
                found.append(_tried(name, proves, lambda: ranks.equal_weights(bench, process, alone)))
            else:
                found.append(_tried(name, proves, lambda: ranks.death(bench, process)))
    return found


def _tried(name: str, proves: str, find: Callable[[], list[Figure]]) -> dict[str, Any]:
    """The row's findings; whatever it raises is one."""
    start = time.monotonic()
    found = _found(name, proves, find)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return found | {"seconds": time.monotonic() - start}


def _found(name: str, proves: str, find: Callable[[], list[Figure]]) -> dict[str, Any]:
    try:
        figures = find()
    except NotJudged as reason:
        return _row(name, proves, "not judged", str(reason), [])
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        head = "" if isinstance(error, UserError | RuntimeError) else f"{type(error).__name__}: "
        return _row(name, proves, "fails", head + told, []) | {"traceback": traceback.format_exc()}
    failed = [figure for figure in figures if not figure.holds]
    return _row(name, proves, "fails" if failed else "holds", "; ".join(map(str, failed or figures)), figures)


def _row(name: str, proves: str, result: Result, told: str, figures: list[Figure]) -> dict[str, Any]:
    plain = [{"what": f.what, "value": f.value, "most": f.most, "least": f.least} for f in figures]
    return {"row": name, "proves": proves, "result": result, "told": told, "figures": plain}


def _merged(of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of all ranks': it fails where it fails on one, and tells of the first such."""
    for result in ("fails", "not judged"):
        for rank, row in enumerate(of_ranks):
            if row["result"] == result:
                told = f"rank {rank}: {row['told']}" if len(of_ranks) > 1 else row["told"]
                return row | {"told": told, "figures_of_ranks": [other["figures"] for other in of_ranks]}
    return of_ranks[0] | {"figures_of_ranks": [row["figures"] for row in of_ranks]}
