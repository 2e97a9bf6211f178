"""Small training runs: their options, in one place, and what they leave."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.distributed import Process
from ffcv_train.training.trainer import Trainer
from tests.support.photographs import ROOT

ALONE = Process(0, 1, 0, 1, torch.device("cpu"))
Betons = tuple[Path, Path]
Finished = subprocess.CompletedProcess[str]


def options(betons: Betons, folder: Path, *more: str) -> list[str]:
    """A two-epoch run of a small network; later options win."""
    return [
        "--model.arch=cifar_resnet20",
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        "--data.num_workers=1",
        "--data.crop_scale=0.35,1",
        "--lr.lr=0.05",
        "--lr.lr_peak_epoch=1",
        "--resolution.min_res=24",
        "--resolution.max_res=32",
        "--resolution.end_ramp=1",
        "--resolution.step=8",
        "--training.epochs=2",
        "--training.batch_size=16",
        "--training.device=cpu",
        "--training.amp=off",
        "--validation.resolution=32",
        "--validation.batch_size=16",
        f"--logging.folder={folder}",
        "--logging.tensorboard=0",
        *more,
    ]


def config(betons: Betons, folder: Path, *more: str) -> RunConfig:
    return load_config(RunConfig, options(betons, folder, *more))


def train(betons: Betons, folder: Path, *more: str) -> Path:
    return Trainer(config(betons, folder, *more), ALONE).fit()


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same_weights(a: Path, b: Path, key: str = "model") -> bool:
    first, second = load_checkpoint(a)[key], load_checkpoint(b)[key]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run_script(arguments: Sequence[object], processes: int = 1, script: str = "train_imagenet.py") -> Finished:
    """A script of the root in a program of its own, or as torchrun starts it in several: rank 0's output comes first.

    Torchrun itself takes seconds to start; the tests that need it name it.
    """
    command = [sys.executable, script, *map(str, arguments)]
    common = os.environ | {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    programs = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        programs.append(subprocess.Popen(command, cwd=ROOT, env=common | own, **pipes))
    try:
        said = [program.communicate(timeout=240) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    status = next((program.returncode for program in programs if program.returncode), 0)
    return subprocess.CompletedProcess(command, status, *map("".join, zip(*said, strict=True)))


def run_here(script: str, *words: object) -> None:
    """A script of the root or of viz/ in this process: a start of its own takes seconds. Raises `SystemExit`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, words)])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(ROOT / script), run_name="__main__")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
