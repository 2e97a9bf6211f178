"""Checkpoints, opened once: whoever needs something of one is given it open."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffcv_train.models.checkpoint import is_ours
from ffcv_train.models.exported import as_checkpoint
from ffcv_train.models.published import is_by_name, local_file
from ffcv_train.models.weight_file import read_weight_file
from ffcv_train.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of weights that has been read: ours, another program's, or published."""

    source: str
    """As it was named: a path, or published weights such as timm:resnet50.a1_in1k"""
    path: Path
    """Where the file lies"""
    content: Mapping[str, Any] = field(repr=False)
    """Tensors on the CPU, those of a zip file mapped: they take memory when they are read"""
    of_a_run: bool
    """Whether a run of this trainer may have written it, and not `ffcv-train export` or another program"""
    _version: tuple[int, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether this trainer wrote it, in a run or as an export."""
        return is_ours(self.content)

    def check_unchanged(self) -> None:
        """Raise `UserError` where another file has taken the place of the one that was read."""
        if _version(self.path) != self._version:
            raise UserError(f"{self.path} has changed since it was read, by a run that goes on say; run this again")


def open_checkpoint(source: str | Path, arch: str = "") -> Checkpoint:
    """Read the file that `source` is or names (see `local_file` for names and `arch`); executes nothing from it.

    Raises `UserError` for what cannot be had, or is no file of torch.save or safetensors.
    """
    path = local_file(source, arch)
    version = _version(path)
    try:
        content = read_weight_file(path)
        return Checkpoint(str(source), path, as_checkpoint(path, content), is_ours(content), version)
    except UserError as error:
        if is_by_name(str(source)):
            raise UserError(f"{source}: {error}; remove that file, and it is downloaded anew") from None
        raise


def opened(checkpoint: Checkpoint | str | Path, arch: str = "") -> Checkpoint:
    """`checkpoint`, opened where it is not."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint, arch)


def _version(path: Path) -> tuple[int, ...]:
    """What tells a file from another that takes its name."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
