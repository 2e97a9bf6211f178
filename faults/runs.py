"""Small training runs in processes of their own, and whether two ended alike."""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ffcv_train.cli import main as cli
from ffcv_train.cli import train
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError

ALONE = Process(0, 1, 0, 1, torch.device("cpu"))
EPOCHS = 4
PATIENCE = 600.0
"""Seconds after which a run hangs: hundreds of times what it takes"""
_SAME = ("epoch", "train_loss", "top_1", "nll", "ece", "lr", "resolution")


def make_data(root: Path) -> Path:
    """96 training and 40 validation photographs of four classes: a folder, zips, .beton files. Returns `root`."""
    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 40)):
        for number in range(count):
            photograph = photographs[number % 2]
            top, left = (int(generator.integers(0, side - 40)) for side in photograph.shape[:2])
            pixels = photograph[top : top + 40, left : left + 40].copy()
            pixels[:, :, number % 3] //= 1 + number % 4
            path = root / "images" / split / "abcd"[number % 4] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    make_zips(root / "images", root)
    for split in ("train", "val"):
        target = str(root / f"{split}.beton")
        convert(
            WriteConfig(split=split, write_mode="raw", num_workers=1, data_dir=str(root / "images"), write_path=target)
        )
    return root


def options(data: Path, folder: Path, *more: str, kind: str = "beton") -> list[str]:
    """A run named r of a small network, whose sides change; later options win."""
    train_set, val_set = {
        "beton": (data / "train.beton", data / "val.beton"),
        "zip": (data / "train.zip", data / "val.zip"),
        "folder": (data / "images/train", data / "images/val"),
    }[kind]
    return [
        *("--model.arch=cifar_resnet20", f"--data.format={kind}", "--data.num_workers=1", "--data.crop_scale=0.35,1"),
        *(f"--data.train_dataset={train_set}", f"--data.val_dataset={val_set}", "--lr.lr=0.05", "--lr.lr_peak_epoch=1"),
        *("--resolution.min_res=16", "--resolution.max_res=24", "--resolution.end_ramp=3", "--resolution.step=8"),
        *(f"--training.epochs={EPOCHS}", "--training.batch_size=16", "--training.device=cpu", "--training.amp=off"),
        *("--training.ema_decay=0.8", "--validation.resolution=24", "--validation.batch_size=20"),
        *(f"--logging.folder={folder}", "--logging.run=r", "--training.resume=auto", *more),
    ]


class Run:
    """A forked process that trains as `arguments` say, its output in a file; `before` is called in it first."""

    def __init__(self, arguments: Sequence[str], log: Path, before: Callable[[], object] | None = None) -> None:
        self.log = log
        self.start = time.monotonic()
        self._status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            _train(arguments, log, before)

    def poll(self) -> int | None:
        """The exit status, -N where signal N ended it, or None."""
        if self._status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> int | None:
        """`poll` when it has ended, or `until()` is true, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and not until() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._status

    def end(self) -> int | str:
        """The exit status, or "hangs"."""
        status = self.wait()
        if status is not None:
            return status
        self.send(signal.SIGKILL)
        self.wait(seconds=20)
        return "hangs"

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if self.poll() is None:
            os.kill(self.process, number)

    def said(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _train(arguments: Sequence[str], log: Path, before: Callable[[], object] | None) -> None:
    status = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # What was opened before, by pytest say, is no place for a run's output.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        if before is not None:
            before()
        cli.run_main(lambda: train.main(arguments))
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def lines(folder: Path) -> int:
    """The number of epochs in the log of the run in `folder`."""
    path = folder / "r/log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def bad_end(run: Run, *wanted: int) -> list[str]:
    """What is wrong with how a run ended: another status than those, a traceback."""
    status, said = run.end(), run.said()
    wrong = [] if status in wanted else [f"status {status}"]
    wrong += ["a traceback"] if "Traceback" in said or "Fatal Python" in said else []
    return [f"{', '.join(wrong)}: {' | '.join(said.strip().splitlines()[-3:])[-400:]}"] if wrong else []


def unreadable(folder: Path) -> list[str]:
    """The checkpoints of the run in `folder` that cannot be loaded."""
    wrong = []
    for name in ("last.pt", "best.pt", "final.pt"):
        if (folder / "r" / name).exists():
            try:
                load_checkpoint(folder / "r" / name)
            except UserError as error:
                wrong.append(str(error))
    return wrong


def differs(folder: Path, reference: Path) -> list[str]:
    """Where the finished run in `folder` is not, bit for bit, the uninterrupted one in `reference`."""
    wrong = unreadable(folder)
    for name in ("last.pt", "best.pt", "final.pt"):
        if not (folder / "r" / name).exists():
            wrong.append(f"{name} is missing")
            continue
        ours, theirs = (load_checkpoint(path / "r" / name) for path in (folder, reference))
        for part in ("model", "ema"):
            other = [key for key, value in theirs[part].items() if not torch.equal(ours[part][key], value)]
            wrong += [f"{name}: {len(other)} tensors of {part} differ"] if other else []
    return wrong + ["log.jsonl differs"] * (_logged(folder) != _logged(reference))


def _logged(folder: Path) -> list[list[Any]]:
    records = [json.loads(line) for line in (folder / "r/log.jsonl").read_text().splitlines()]
    return [[record.get(key) for key in _SAME] for record in records]
