"""Two ranks over NCCL on the stub: a run, a signal to one of them, a rank that fails."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import card
import torch
import torch.distributed as dist
import values
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.system.distributed import Process, all_reduce_sum, process_group
from ffcv_train.system.errors import UserError
from ffcv_train.training import status
from ffcv_train.training.trainer import Stopped, Trainer

FOLDER = Path(sys.argv[3])


def options(run: str, *more: str) -> list[str]:
    """Two epochs of three steps of two passes, online smoothing and averaged weights."""
    arguments = card.arguments()
    return [
        *("--model.arch=cifar_resnet20", "--training.epochs=2", "--lr.lr_peak_epoch=1", "--training.batch_size=8"),
        *("--resolution.min_res=32", "--resolution.max_res=32", "--loss.name=ols", "--training.ema_decay=0.5"),
        *("--validation.resolution=32", "--validation.batch_size=16", "--logging.tensorboard=0"),
        *(f"--data.train_dataset={arguments['train']}", f"--data.val_dataset={arguments['val']}"),
        *("--data.num_workers=1", "--training.accumulate=2", "--training.device=cuda"),
        *(f"--logging.folder={FOLDER}", f"--logging.run={run}", *more),
    ]


def run(name: str, process: Process, *more: str) -> dict[str, Any]:
    """How a run ends, and what it sent."""
    card.reset_counters()
    trainer = Trainer(load_config(RunConfig, options(name, *more)), process)
    try:
        trainer.fit()
        ended = "whole"
    except Stopped as stopped:
        ended = str(stopped).replace(str(FOLDER), "")
    return {
        "ended": ended,
        "reduced": card.counters().get("ncclAllReduce", 0),
        "gathered": card.counters().get("ncclAllGather", 0),
        "norms": sum(isinstance(module, nn.SyncBatchNorm) for module in trainer.learner.model.modules()),
        "at": [trainer.epoch, trainer.step],
        "wrapped": type(trainer.learner.wrapped).__name__,
    }


def with_signal(process: Process) -> dict[str, Any]:
    """SIGTERM reaches the second rank only, in the first epoch."""
    own_step = Trainer.train_step

    def step(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = own_step(self, epoch, number, batches)
        if process.rank == 1 and (epoch, number) == (0, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    Trainer.train_step = step  # type: ignore[method-assign]
    try:
        # The wish is posted at one agreement and read at the next: after steps 1 and 2.
        return run("stopped", process, "--logging.interval=1")
    finally:
        Trainer.train_step = own_step  # type: ignore[method-assign]


def sums(process: Process) -> list[int]:
    """A sum over the ranks of what copies brought to the devices."""
    return all_reduce_sum(torch.tensor([process.rank + 1, 10]).to(process.device)).tolist()


def failing(process: Process) -> None:
    """The second rank meets an image that cannot be read; the first waits for it, until it is told to stop."""
    own_step = Trainer.train_step

    def step(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        if process.rank == 1 and number == 2:
            torch.cuda.synchronize()  # the first has got all of the steps before, in which DDP itself waits
            raise UserError("sample 7 is damaged")
        return own_step(self, epoch, number, batches)

    Trainer.train_step = step  # type: ignore[method-assign]
    Trainer(load_config(RunConfig, options("failed", "--logging.interval=1")), process).fit()


def main() -> None:
    """Do all; the last leaves the group in disorder."""
    values.replace()
    status._PATIENCE_SECONDS = 0.5
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {"rank": rank}
    start = time.monotonic()
    try:
        with process_group("cuda") as process:
            found["backend"] = dist.get_backend()
            found["device"] = str(process.device)
            found["run"] = run("whole", process)
            found["own_norms"] = run("own_norms", process, "--training.epochs=1", "--lr.lr_peak_epoch=0")
            found["shared_norms"] = run(
                "shared_norms", process, "--training.epochs=1", "--lr.lr_peak_epoch=0", "--model.sync_batchnorm=1"
            )
            found["sums"] = sums(process)
            found["signal"] = with_signal(process)
            found["missing"] = [name for name in card.counters() if name.startswith("missing")]
            first = torch.tensor([os.getpid() if rank == 0 else 0]).to(process.device)
            first_rank = int(all_reduce_sum(first))
            failing(process)
    except UserError as error:
        found["failed"] = str(error)
        found["aborted"] = card.counters().get("ncclCommAbort", 0)
        if rank == 1:
            os.kill(first_rank, signal.SIGTERM)  # as torchrun does when it sees a rank's end
    found["seconds"] = time.monotonic() - start
    Path(sys.argv[2]).write_text(json.dumps(found))
    os._exit(0)  # no orderly end without the other rank


main()
