"""An archive in memory, once per machine, for all ranks and their workers."""

import contextlib
import os
import threading
import time
from pathlib import Path

import torch.distributed as dist

from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.resources import available_bytes
from ffcv_train.system.watch import at

_PIECE = 64 << 20
_MEETING_SECONDS = 0.2


class ArchiveCache:
    """A copy of a file in an anonymous memory file of local rank 0; `path` opens it in this process and its children.

    It vanishes with the last process that has it open, however that one ends. Called on every rank; raises `UserError`
    on all of them where it cannot be made.
    """

    def __init__(self, archive: Path, process: Process) -> None:
        self.archive = archive
        self._descriptor = -1
        number, descriptor = _load_once(archive, process)
        own = number == os.getpid()
        self._descriptor = descriptor if own else os.open(f"/proc/{number}/fd/{descriptor}", os.O_RDONLY)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of the memory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _load_once(archive: Path, process: Process) -> tuple[int, int]:
    """(process number, descriptor) of the copy that local rank 0 makes. Raises `UserError` on every rank alike."""
    if process.world_size == 1:
        return os.getpid(), _load(archive, process)
    # In a thread, while the ranks keep meeting: a slow disk takes longer than a collective operation may.
    loading = _Loading(archive, process) if process.local_rank == 0 else None
    said: list[tuple[int, tuple[int, int] | str | None]] = [(0, None)] * process.world_size
    while True:
        dist.all_gather_object(said, (process.local_rank, loading.outcome if loading else None))
        answers = [answer for local_rank, answer in said if local_rank == 0]
        if all(answer is not None for answer in answers):
            break
        at("loading the archive", meets=True)
        time.sleep(_MEETING_SECONDS)
    failure = next((answer for answer in answers if isinstance(answer, str)), None)
    own = said[process.rank - process.local_rank][1]
    if failure is not None or not isinstance(own, tuple):
        if loading and isinstance(loading.outcome, tuple):
            os.close(loading.outcome[1])
        raise UserError(str(failure))
    return own


class _Loading:
    """`_load` in a thread; `outcome` is None while it runs, then where the copy is, or what went wrong."""

    def __init__(self, archive: Path, process: Process) -> None:
        self.outcome: tuple[int, int] | str | None = None
        threading.Thread(target=self._run, args=(archive, process), daemon=True).start()

    def _run(self, archive: Path, process: Process) -> None:
        try:
            self.outcome = os.getpid(), _load(archive, process)
        except Exception as error:  # every rank is waiting for an answer
            self.outcome = str(error) if isinstance(error, UserError) else f"cannot cache {archive}: {error!r}"


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
