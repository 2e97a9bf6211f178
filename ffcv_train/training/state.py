"""All that a checkpoint of a run holds: one way to write it, one to read it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_train.config.read import from_dict, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.losses.base import Criterion
from ffcv_train.models.blurpool import with_filters
from ffcv_train.models.checkpoint import DamagedCheckpointError, check_tensors, load_checkpoint, save_checkpoint
from ffcv_train.system.class_names import check_same_classes, tidy
from ffcv_train.system.environment import versions
from ffcv_train.system.errors import UserError
from ffcv_train.system.watch import at
from ffcv_train.training.ema import WeightAverage
from ffcv_train.training.optim import load_optimizer
from ffcv_train.training.resume import comparable, differences


@dataclass(frozen=True)
class Facts:
    """What a run is, besides its options: what whoever continues it must share."""

    num_classes: int
    class_names: tuple[str, ...] | None
    global_batch: int
    samples: int
    """of the training set"""
    data: Mapping[str, str]
    """digests of the data sets' tables, by "train" and "val" """
    teacher: str = ""
    """digest of the teacher's file, where there is one"""

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        names = list(self.class_names) if self.class_names is not None else None
        return {**vars(self), "class_names": names, "data": dict(self.data)}


@dataclass
class TrainState:
    """What a run has learned so far, and how far it has come.

    `model`, `optimizer`, `scaler`, `criterion` and `ema` are the run's own objects, which `load` fills.
    """

    config: RunConfig
    facts: Facts
    steps: int
    """of an epoch"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: Criterion
    ema: WeightAverage | None
    epoch: int = 0
    """trained to their ends"""
    step: int = 0
    """done of the epoch after them"""
    best_top_1: float = -1.0
    mean_loss: float = 0.0
    """of the unfinished epoch's steps so far"""
    unfinished: dict[str, Any] | None = field(default=None)
    """the record of a trained epoch that is not validated or logged yet"""
    threads: int = field(default_factory=torch.get_num_threads)
    """of PyTorch in each process, when the checkpoint was written that this run goes on from"""

    def save(self, path: Path, *, write: bool, whole: bool = True) -> None:
        """Write a checkpoint, where `write` is true; called on every rank, for criteria add up what all have seen.

        `whole`: all that `load` needs, and the file that was there before stays as previous.pt; else the networks and
        what describes them.
        """
        criterion = self.criterion.state_of_all_ranks() if whole else {}
        if not write:
            return
        at(f"writing {path.name}", waits=False)
        facts = self.facts.plain()
        state: dict[str, Any] = {
            "model": _weights(self.model),
            "ema": _weights(self.ema.module) if self.ema is not None else None,
            "config": to_dict(self.config),
            "arch": self.config.model.arch,
            "num_classes": facts["num_classes"],
            "class_names": facts["class_names"],
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "epoch": self.epoch,
            "step": self.step,
            "best_top_1": self.best_top_1,
            "versions": versions(),
        }
        if whole:
            state |= {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "criterion": criterion,
                "ema_updates": self.ema.updates if self.ema is not None else 0,
                "mean_loss": self.mean_loss,
                "unfinished": self.unfinished,
                "threads": torch.get_num_threads(),
                **facts,
            }
        save_checkpoint(state, path, keep=path.with_name("previous.pt") if whole else None)

    def load(self, path: Path, rank: int) -> None:
        """Continue from the checkpoint at `path`, written at any number of ranks.

        Raises `UserError` where it is of another run, or does not hold what `save` writes.
        """
        state = load_checkpoint(path)
        if "optimizer" not in state:
            raise UserError(
                f"{path} holds weights only and cannot be resumed; resume from last.pt, or use model.weights"
            )
        try:
            self._check_same_run(state, path)
            self._fill(state, path, rank)
        except UserError:
            raise
        except Exception as error:
            # Entries that lack or are of another kind: what torch or Python says of them names no file.
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path} does not hold what this run needs ({type(error).__name__}: {reason}); continue from another "
                "checkpoint of the run, such as its previous.pt"
            ) from None

    def _check_same_run(self, state: Mapping[str, Any], path: Path) -> None:
        for name, value in self.facts.plain().items():
            if name in ("data", "teacher"):
                continue
            if name == "class_names":
                if state[name] and value:
                    advice = "continue on the data set that the run began with"
                    check_same_classes(str(path), list(map(tidy, state[name])), "the data set", value, advice)
                continue
            if state[name] != value:
                hint = ""
                if name == "global_batch":
                    hint = f"; set --training.global_batch_size={state[name]}, and --training.accumulate where "
                    hint += "memory lacks"
                raise UserError(f"{path} was trained with {name} {state[name]}, this run has {value}{hint}")
        # Digests came later than the format.
        for name, digest in self.facts.data.items():
            if state.get("data", {}).get(name, digest) != digest:
                option = getattr(self.config.data, f"{name}_dataset")
                raise UserError(
                    f"{path} was trained with another data.{name}_dataset than {option}: sizes, labels or checksums of "
                    f"its samples differ; use the same, or start a new run with --model.weights={path}"
                )
        if state.get("teacher", self.facts.teacher) != self.facts.teacher:
            raise UserError(
                f"{path} was trained with another teacher than {self.config.distill.teacher}; give that one's file, or "
                f"start a new run with --model.weights={path}"
            )
        # Options that came later have their defaults.
        before = to_dict(from_dict(RunConfig, state["config"], str(path)))
        now = to_dict(self.config)
        differing = differences(comparable(before, files_may_move=True), comparable(now, files_may_move=True))
        if differing:
            raise UserError(
                f"{path} was trained with other settings: {'; '.join(differing[:5])}; "
                f"use the same, or start a new run with --model.weights={path}"
            )

    def _fill(self, state: Mapping[str, Any], path: Path, rank: int) -> None:
        _check_place(state, path, self.config.training.epochs, self.steps)
        for part in ("model", "criterion") + (("ema",) if self.ema is not None else ()):
            check_tensors(state[part], path)
        self.model.load_state_dict(with_filters(state["model"], self.model))
        for number, buffers in state["optimizer"]["state"].items():
            named = {f"the optimizer's {key} of parameter {number}": value for key, value in buffers.items()}
            # A sum of squares may overflow; what is not a number shows in the first losses.
            check_tensors({k: torch.as_tensor(v) for k, v in named.items() if v is not None}, path, finite=False)
        load_optimizer(self.optimizer, state["optimizer"])
        self._check_shapes_of_buffers(path)
        if any(not _is_number(value) for value in state["scaler"].values()):
            raise UserError(f"{path}: the scaler's state is not all numbers; continue from another checkpoint")
        self.scaler.load_state_dict(state["scaler"])
        self.criterion.load_state_of_all_ranks(state["criterion"], rank)
        if self.ema is not None:
            self.ema.module.load_state_dict(with_filters(state["ema"], self.ema.module))
            self.ema.updates = state["ema_updates"]
        self.epoch, self.step, self.best_top_1 = state["epoch"], state["step"], float(state["best_top_1"])
        self.mean_loss, self.unfinished = float(state["mean_loss"]), state["unfinished"]
        # Threads came later than the format.
        self.threads = int(state.get("threads", torch.get_num_threads()))

    def _check_shapes_of_buffers(self, path: Path) -> None:
        # torch takes buffers of any shape and fails in the first step.
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                    raise UserError(
                        f"{path}: the optimizer's {key} of {name} has the shape {tuple(value.shape)}, the parameter "
                        f"{tuple(parameter.shape)}; continue from another checkpoint"
                    )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `model`, each tensor contiguous, as safetensors wants them, in whatever format it trains."""
    state = model.state_dict()
    state.update((key, tensor.contiguous()) for key, tensor in list(state.items()))
    return state


def _check_place(state: Mapping[str, Any], path: Path, epochs: int, steps: int) -> None:
    """Raise `UserError` where a run cannot stand where `state` says."""
    unfinished = state["unfinished"]
    checks: dict[str, Callable[[Any], bool]] = {
        "epoch": lambda value: type(value) is int and 0 <= value <= epochs,
        "step": lambda value: type(value) is int and 0 <= value <= steps,
        "ema_updates": lambda value: type(value) is int and value >= 0,
        "best_top_1": lambda value: _is_number(value) and -1 <= value <= 1,
        "mean_loss": _is_number,
        "unfinished": lambda value: value is None or (isinstance(value, dict) and value["epoch"] == state["epoch"] - 1),
    }
    for name, holds in checks.items():
        if not holds(state[name]):
            raise UserError(
                f"{path}: {name} is {str(unfinished if name == 'unfinished' else state[name])[:60]}, where no run of "
                f"{epochs} epochs of {steps} steps can stand; continue from another checkpoint of the run"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_newest(state: TrainState, path: Path, rank: int, *, fall_back: bool) -> str | None:
    """`state.load`; with `fall_back` from previous.pt where the file is damaged, and what is to be said of that."""
    try:
        state.load(path, rank)
    except DamagedCheckpointError as error:
        older = path.with_name("previous.pt")
        if not fall_back or not older.is_file():
            raise
        state.load(older, rank)
        return f"{error}: continued from that one"
    return None
