"""Checkpoints: written whole or not at all, read without executing anything from the file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import whole_file

FORMAT = 1
_SMALL_BYTES = 1 << 20  # what a tensor may have without content of its own, as one that was expanded does


class DamagedCheckpointError(UserError):
    """A file that is no whole checkpoint: cut off, overwritten, or with other bytes than were written."""


def save_checkpoint(state: dict[str, Any], path: Path, *, keep: Path | None = None) -> None:
    """Write `state` to `path` so that a crash at any moment leaves either the old file or the new one.

    `keep` is the name under which the old file stays, where the file system has hard links. `state` holds tensors,
    numbers, texts, lists and dictionaries only. Raises `UserError` when the disk refuses.
    """
    try:
        with whole_file(path, keep=keep, one_writer=True) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        # torch.save hides what the disk said behind an assertion of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(f"cannot write the checkpoint {path}: {reason}; free some disk space and resume") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints to the CPU. Raises `UserError` where the file is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist; a run writes last.pt, best.pt and final.pt")
    check_container(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a hostile or damaged pickle makes of the reader: recursion, missing keys, absurd sizes.
        raise _damaged(path, error) from None
    if not is_ours(state):
        raise UserError(f"{path} is not a checkpoint of this trainer; plain weights go to --model.weights")
    return state


def is_ours(content: Any) -> bool:
    """Whether a file with this content is a checkpoint of this trainer."""
    return isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("model"), Mapping)


def check_container(path: Path) -> None:
    """Compare every byte of a file of `torch.save` with the CRC-32 that it carries and `torch.load` never reads.

    Before any memory is taken: `torch.save` compresses nothing, so that a file can hold no more than its own size.
    Raises `DamagedCheckpointError`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise zipfile.BadZipFile("its records are compressed, which torch.save never does")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise zipfile.BadZipFile("its records claim more bytes than the file has")
            # For testzip, records of one name are one.
            if len({record.filename for record in records}) < len(records):
                raise zipfile.BadZipFile("a record stands twice")
            other = archive.testzip()
    except Exception as error:
        raise _damaged(path, error) from None
    if other is not None:
        raise _damaged(path, zipfile.BadZipFile(f"{other} has another CRC-32 than when it was written"))


def check_tensors(tensors: Mapping[str, Any], path: str | Path, *, finite: bool = True) -> None:
    """Raise `UserError` where `tensors`, those of a network, hold what no network computes with.

    That is anything but plain tensors of real numbers and, with `finite`, numbers that are not finite.
    """
    for name, tensor in tensors.items():
        reason = None
        if not isinstance(tensor, torch.Tensor):
            reason = f"a {type(tensor).__name__}, no tensor"
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            kind = "quantized" if tensor.is_quantized else str(tensor.dtype if tensor.is_complex() else tensor.layout)
            reason = f"no plain tensor of real numbers ({'without content' if tensor.is_meta else kind})"
        elif tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), _SMALL_BYTES):
            reason = "larger than what the file holds of it"
        elif (
            finite
            and tensor.is_floating_point()
            and not (tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()
        ):
            reason = "not finite"
        if reason is not None:
            raise UserError(f"{path}: {name} is {reason}; use another checkpoint, such as a run's previous.pt")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` and `torch.compile`, in any order: the one whose weights are saved."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _damaged(path: Path, error: Exception) -> DamagedCheckpointError:
    lines = str(error).splitlines()
    reason = lines[0][:120] if lines else type(error).__name__
    # A run continues from the checkpoint before, where it is asked for by name too.
    older = path.with_name("previous.pt")
    hint = f"; the one before it is {older}" if older.is_file() and path.name != older.name else ""
    return DamagedCheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({reason}){hint}")
