"""What is to be evaluated: a command line, laid over the checkpoint's own configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ffcv_train.config.schema import RunConfig
from ffcv_train.models.factory import propose_arch
from ffcv_train.models.opening import Checkpoint, open_checkpoint
from ffcv_train.models.published import arch_of, local_file
from ffcv_train.models.weight_file import has_averaged, stated_arch
from ffcv_train.models.weights import read_state_dict
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class Subject:
    """What is evaluated, as far as the checkpoint itself says it; a foreign one says little more than its path."""

    path: str
    ours: bool
    config: dict[str, Any]
    has_ema: bool = False
    has_plain: bool = True
    arch: str = ""
    """of a foreign checkpoint what it states, under its name here"""
    named: bool = False
    """Whether a foreign checkpoint is of `arch` beyond doubt: weights by name, or with timm's `config.json` beside"""
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    epoch: int | None = None
    temperature: Mapping[str, Any] | None = None
    """What `ffcv-train eval --keep-temperature` wrote: `value`, and the `weights` it belongs to"""
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    """None for weights of torchvision's until `opened` is told whose they are, and after the file has served"""

    @property
    def file(self) -> Checkpoint:
        """The checkpoint, which is open."""
        assert self.checkpoint is not None
        return self.checkpoint

    @property
    def trained_on(self) -> Mapping[str, Any]:
        """The section data of the training's configuration; empty where it does not say so."""
        return self.config.get("data", {})

    def opened(self, arch: str) -> "Subject":
        """The subject with its file open, which has weights of `arch`. Raises `UserError`."""
        return self if self.checkpoint is not None else replace(self, checkpoint=open_checkpoint(self.path, arch))

    def temperature_of(self, weights: str, option: str) -> float:
        """The temperature of these `weights`. Raises `UserError` where none is kept; `option` is what asked for it."""
        if self.temperature is None or self.temperature["weights"] != weights:
            raise UserError(
                f"{self.path} holds no temperature for its {weights} weights; fit one with ffcv-train eval --suite "
                f"calibration --keep-temperature, or leave {option} out"
            )
        return float(self.temperature["value"])


@dataclass(frozen=True)
class Request:
    """A resolved command line of a command that runs a checkpoint over a data set."""

    subject: Subject
    """Opened"""
    config: RunConfig
    weights: str
    output: Path | None
    ignore_class_names: bool
    options: SimpleNamespace = field(default_factory=SimpleNamespace)
    """The script's own options, as `add_options` declared them"""
    tau: float | None = None
    """Power of the norm that each class's weights in the last layer are divided by; None: they stay as they are"""
    taken: str = ""
    """In words, what was taken from the statement on published weights"""


def read_subject(path: str) -> Subject:
    """What a checkpoint says about itself. Raises `UserError` where the file is missing or is no checkpoint."""
    if path.startswith("torchvision:"):
        return Subject(path, False, {}, arch=arch_of(path), named=bool(arch_of(path)))
    if not local_file(path).exists():
        raise UserError(f"the checkpoint {path} does not exist; a run writes last.pt, best.pt and final.pt")
    checkpoint = open_checkpoint(path)
    state = checkpoint.content
    if not checkpoint.ours:
        weights = read_state_dict(checkpoint)  # says what is wrong with a file that holds no weights
        named, stated = arch_of(path), stated_arch(state)
        arch = named or (propose_arch(stated, weights) if stated else "")
        return Subject(
            path, False, {}, has_ema=has_averaged(state), arch=arch, named=bool(named), checkpoint=checkpoint
        )
    try:
        names = state.get("class_names")
        return Subject(
            path=path,
            ours=True,
            config=_without_class_list(state["config"]),
            has_ema=state.get("ema") is not None,
            has_plain=bool(state["model"]),
            arch=state["arch"],
            num_classes=state["num_classes"],
            class_names=tuple(map(tidy, names)) if names is not None else None,
            epoch=state.get("epoch"),
            temperature=_temperature(state.get("temperature")),
            checkpoint=checkpoint,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what it is ({error}); give another checkpoint of this run") from None


def check_arch_is_given(subject: Subject, given: bool, otherwise: str = "") -> None:
    """Raise `UserError` for a checkpoint of another program whose architecture nobody names.

    `otherwise` is what else can be done.
    """
    if subject.ours or subject.named or given:
        return
    if subject.arch:
        raise UserError(
            f"{subject.path} is not a checkpoint of this trainer, and says that it is of {subject.arch}; if so, pass "
            f"--model.arch={subject.arch}{otherwise}"
        )
    raise UserError(
        f"{subject.path} is not a checkpoint of this trainer and does not say what network it is of; name it with "
        f"--model.arch{otherwise}"
    )


def choose_weights(subject: Subject, wish: str) -> str:
    """ "ema" or "model" for `wish`, which may be "auto": averaged weights where the file has them.

    Raises `UserError` where those that are wished for are not there.
    """
    if wish == "ema" and not subject.has_ema:
        of_a_run = subject.checkpoint is not None and subject.checkpoint.of_a_run
        why = " (training.ema_decay was 0)" if of_a_run else ""
        raise UserError(f"{subject.path} holds no averaged weights{why}; use --weights model")
    if wish == "model" and not subject.has_plain:
        raise UserError(f"{subject.path} was exported with averaged weights alone; use --weights ema")
    return ("ema" if subject.has_ema else "model") if wish == "auto" else wish


def _temperature(kept: Any) -> Mapping[str, Any] | None:
    if kept is None:
        return None
    value = kept["value"]
    if not (isinstance(value, float) and math.isfinite(value) and value > 0 and isinstance(kept["weights"], str)):
        raise TypeError(f"its temperature is {value!r}")
    return kept


def _without_class_list(config: dict[str, Any]) -> dict[str, Any]:
    """What the training's data were called in is no other data set's business: the network's names are in the file."""
    return {**config, "data": {key: value for key, value in config["data"].items() if key != "classes"}}
