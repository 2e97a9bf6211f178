"""What eval.py is asked to do: its command line, laid over the checkpoint's own configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ffcv_train.config.schema import RunConfig
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.models.weights import read_state_dict
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class Subject:
    """What is evaluated, as far as the checkpoint itself says it; a foreign checkpoint says nothing but its path."""

    path: str
    ours: bool
    config: dict[str, Any]
    has_ema: bool = False
    arch: str = ""
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    epoch: int | None = None


@dataclass(frozen=True)
class Request:
    """A resolved command line of eval.py, or of another script that runs a checkpoint over a data set."""

    subject: Subject
    config: RunConfig
    weights: str
    output: Path | None
    ignore_class_names: bool
    options: SimpleNamespace = field(default_factory=SimpleNamespace)
    """The script's own options, as `add_options` declared them"""


def read_subject(path: str) -> Subject:
    """What a checkpoint says about itself. Raises `UserError` where the file is missing or is no checkpoint."""
    if not Path(path).is_file():
        raise UserError(f"the checkpoint {path} does not exist; a run writes last.pt, best.pt and final.pt")
    try:
        state = load_checkpoint(path)
    except UserError:
        read_state_dict(path)  # says what is wrong with a file that is no checkpoint at all
        return Subject(path, False, {})
    try:
        names = state.get("class_names")
        return Subject(
            path=path,
            ours=True,
            config=state["config"],
            has_ema=state.get("ema") is not None,
            arch=state["arch"],
            num_classes=state["num_classes"],
            class_names=tuple(names) if names is not None else None,
            epoch=state.get("epoch"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what it is ({error}); give another checkpoint of this run") from None
