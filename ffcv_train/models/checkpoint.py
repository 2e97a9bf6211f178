"""Checkpoints: written whole or not at all, read without executing anything from the file."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_train.system.errors import UserError

FORMAT = 1


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path` so that a crash at any moment leaves either the old file or the new one.

    `state` holds tensors, numbers, texts, lists and dictionaries only. Raises `UserError` when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch.save hides what the disk said behind an assertion of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(f"cannot write the checkpoint {path}: {reason}; free some disk space and resume") from None
    _sync_folder(path.parent)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints to the CPU. Raises `UserError` where the file is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist; a run writes last.pt, best.pt and final.pt")
    try:
        # A file that was cut off while being written must fail as such, not as a puzzle of the unpickler.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or not a PyTorch checkpoint ({reason[:120]})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise UserError(f"{path} is not a checkpoint of this trainer; plain weights go to --model.weights")
    return state


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` and `torch.compile`, in any order: the one whose weights are saved."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
