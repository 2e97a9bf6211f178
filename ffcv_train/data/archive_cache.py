"""An archive in memory, once per machine, for all ranks and their workers."""

import contextlib
import os
from pathlib import Path

import torch.distributed as dist

from ffcv_train.data.memory import available_bytes
from ffcv_train.distributed import Process
from ffcv_train.errors import UserError
from ffcv_train.progress import ProgressLine

_PIECE = 64 << 20


class ArchiveCache:
    """A copy of a file in an anonymous memory file of local rank 0; `path` opens it in this process and its children.

    It vanishes with the last process that has it open, however that one ends. Called on every rank; raises `UserError`
    on all of them where it cannot be made.
    """

    def __init__(self, archive: Path, process: Process) -> None:
        self.archive = archive
        self._descriptor = -1
        own: tuple[int, int] | str | None = None
        if process.local_rank == 0:
            try:
                self._descriptor = _load(archive, process)
                own = (os.getpid(), self._descriptor)
            except UserError as error:
                own = str(error)
        found = _gather(own, process)
        if isinstance(found, str):
            self.close()
            raise UserError(found)
        if self._descriptor < 0:
            number, descriptor = found
            self._descriptor = os.open(f"/proc/{number}/fd/{descriptor}", os.O_RDONLY)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of the memory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _gather(own: tuple[int, int] | str | None, process: Process) -> tuple[int, int] | str:
    """What local rank 0 of this machine says, or what went wrong on any machine."""
    if process.world_size == 1:
        assert own is not None
        return own
    said: list[tuple[int, int] | str | None] = [None] * process.world_size
    dist.all_gather_object(said, own)
    failure = next((answer for answer in said if isinstance(answer, str)), None)
    answer = failure or said[process.rank - process.local_rank]
    assert answer is not None
    return answer


def _load(archive: Path, process: Process) -> int:
    size, available = archive.stat().st_size, available_bytes()
    if size > available:
        raise UserError(
            f"{archive} has {size / 2**30:.1f} GiB, but only {available / 2**30:.1f} GiB of memory are available; "
            "train with --data.cache=0"
        )
    line = ProgressLine() if process.is_main else None
    descriptor = os.memfd_create(archive.name, os.MFD_CLOEXEC)
    try:
        with archive.open("rb", buffering=0) as file:
            done = 0
            while piece := file.read(_PIECE):
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
                done += len(piece)
                if line is not None:
                    line.show(f"cache {archive.name}", done >> 20, size >> 20, "MiB")
        if done != size:
            raise UserError(f"{archive} changed while it was read; start again")
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"cannot hold {archive} in memory: {error.strerror}; train with --data.cache=0") from None
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    finally:
        if line is not None:
            line.close()
    return descriptor
