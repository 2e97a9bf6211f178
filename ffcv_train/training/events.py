"""A run's numbers as TensorBoard reads them.

Written here and now: PyTorch's `SummaryWriter` leaves it to a thread, whose error on a full disk is a traceback of its
own, and comes back at some later call.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new event file in `folder`; every method raises `OSError` where the disk refuses, which ends the file.

    With `purge_step` TensorBoard hides what older files of the folder hold of that step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Append the named numbers of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError:
            with contextlib.suppress(OSError):  # of what the file's buffer still holds
                self._file.close()
            raise
