"""Rows of several processes: data parallelism is one device with a larger batch, and no rank outlives another."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from ffcv_train.doctor.gpu.bench import IMAGES, Bench, exact_float32
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, total_distance
from ffcv_train.system.distributed import Process, barrier, from_all_ranks, from_rank_0
from ffcv_train.training.trainer import Trainer

_PROGRAM = """
from ffcv_train.cli.main import run
from ffcv_train.system.signals import end_with_parent
end_with_parent()
run("train")
"""
TRAIN = (sys.executable, "-c", _PROGRAM)
"""What starts a run, before its options; it ends with this process, however that one ends."""
_BATCH, _STEPS = 8, 3
_APART = 1e-3  # of the way: sums in another order
_START_SECONDS, _END_SECONDS = 240.0, 60.0


class AgreedError(RuntimeError):
    """What went wrong, raised by all ranks alike, so that none waits for another."""


class Weights(NamedTuple):
    """Before and after a few steps, on the CPU."""

    start: list[torch.Tensor]
    end: list[torch.Tensor]


def on_one_device(bench: Bench, world_size: int) -> Weights | str:
    """What one device learns from the batches of all, or why it could not; called before the processes meet."""
    try:
        return _trained(bench, Process(0, 1, 0, 1, bench.device), world_size)
    except NotJudged:
        return ""
    except Exception as error:
        return f"{type(error).__name__} on one device: {error}"


def equal_weights(bench: Bench, process: Process, alone: Weights | str) -> list[Figure]:
    """All ranks hold the same weights, those of one device with the N-fold batch."""
    for problem in from_all_ranks(process, alone if isinstance(alone, str) else ""):
        if problem:
            raise AgreedError(problem)
    found = _trained(bench, process, 1)
    content = hashlib.sha256()
    for tensor in found.end:
        content.update(tensor.contiguous().numpy().tobytes())
    digests = from_all_ranks(process, content.hexdigest())
    assert not isinstance(alone, str)
    return [
        Figure("different networks on all ranks", len(set(digests)), most=1),
        Figure(
            "share of the way apart from one device", total_distance(found.end, alone.end, alone.start), most=_APART
        ),
    ]


def _trained(bench: Bench, process: Process, times: int) -> Weights:
    """A few steps of a network without BatchNorm, on this rank's share of global batches."""
    ranks = times * process.world_size
    share = min(_BATCH, IMAGES // (_STEPS * ranks))
    if not share:
        raise NotJudged(f"the synthetic images suffice for {IMAGES // _STEPS} processes, and these are {ranks}")
    options = ("--model.arch=cifar_deit_tiny", "--model.drop_path=0", f"--training.batch_size={share * times}")
    with bench.trainer(bench.config(*options), process=process) as run, exact_float32():
        start = _copies(run)
        with contextlib.closing(run.train_loader.epoch()) as batches:
            for step in range(_STEPS):
                run.train_step(0, step, batches)
        return Weights(start, _copies(run))


def _copies(run: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().to("cpu", copy=True) for parameter in run.learner.model.parameters()]


def death(bench: Bench, process: Process) -> list[Figure]:
    """A run of as many processes as these, of which the last is killed, and the others get their launcher's SIGTERM."""
    port = from_rank_0(str(_free_port()) if process.is_main else None)
    folder = bench.folder / "runs" / "dying"
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--training.epochs=5000", "--validation.every=5000", "--logging.run=dying", "--training.batch_size=8")
    command = [*TRAIN, *bench.options(*options, f"--training.device={bench.device.type}")]
    # Children meet each other at a port of their own, not at the launcher's store.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    environment["MASTER_PORT"] = str(port)
    told = folder / f"output_{process.rank}.txt"
    with told.open("wb") as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        problem = from_rank_0(_trains(folder, child, told) if process.is_main else None)
        if problem:
            raise AgreedError(problem)
        last = process.world_size - 1
        if process.rank == last:
            child.kill()
            child.wait()
        barrier()
        start = time.monotonic()
        if process.rank != last:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_END_SECONDS)
        seconds = time.monotonic() - start if child.poll() is not None else float("inf")
        return [Figure("seconds until the last one ended", max(from_all_ranks(process, seconds)), most=_END_SECONDS)]
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _trains(folder: Path, child: "subprocess.Popen[bytes]", told: Path) -> str:
    """Wait until the run has logged an epoch; why it has not, or nothing."""
    end = time.monotonic() + _START_SECONDS
    log = folder / "log.jsonl"
    while time.monotonic() < end:
        if log.is_file() and log.stat().st_size:
            return ""
        if child.poll() is not None:
            break
        time.sleep(0.1)
    lines = told.read_text(errors="replace").strip().splitlines()
    return f"the run to be killed did not start: {lines[-1] if lines else 'it said nothing'}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
