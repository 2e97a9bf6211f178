"""The rows of `gpu-check` that need several processes, over NCCL: as they are, and with ranks that learn apart."""

import sys
from pathlib import Path
from typing import Any

import card
import torch
from gpu_check_rows import replace
from torch import nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.doctor.gpu import check, ranks
from ffcv_train.system.distributed import Process
from ffcv_train.training import parallel

apart: list[float] = []
compared = ranks.equal_weights


def and_planted(*arguments: Any) -> list[Any]:
    """The row as it is, after one whose ranks begin with weights of their own and send no gradients."""
    wrap, parallel.wrap = parallel.wrap, _alone
    try:
        apart.append(compared(*arguments)[0].value)
    finally:
        parallel.wrap = wrap
    return compared(*arguments)


def _alone(model: nn.Module, config: RunConfig, process: Process) -> nn.Module:
    first = next(model.parameters())
    first.data.copy_(torch.full(first.shape, float(process.rank)))
    return model


def main() -> None:
    """Do so, and report."""
    replace()
    ranks.equal_weights = and_planted
    ranks.TRAIN = (sys.executable, str(Path(__file__).with_name("train.py")))
    card.set_order("random")
    findings = check.check("cuda", list(check.RANKS), lambda row: print(row, flush=True), minutes=1000)
    missing = [name for name in card.counters() if name.startswith("missing")]
    reduced = card.counters().get("ncclAllReduce", 0)
    card.report({"findings": findings, "apart": apart, "reduced": reduced, "missing": missing})
