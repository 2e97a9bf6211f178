"""A worker process of ffcv-train write: it encodes a task's images, keeps the bytes, and writes them where it is told.

Only rows of the sample table pass between processes. Worker processes start by importing this, so nothing heavy is
imported here.
"""

import contextlib
import fcntl
import os
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedRandom, FileIO
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from ffcv_train.data.convert.encoding import Encoding, Task, encode_task, shrink

_MAX_BUFFERS = 512
"""Buffers per call of the system; Linux takes 1024 at most."""


@dataclass
class Assignment:
    """What a worker is to do: first write earlier tasks' samples, then encode `task` under `number`.

    `positions` gives, by number of the task, where each of its samples goes in the file; none: they are dropped.
    """

    positions: dict[int, list[int]] = field(default_factory=dict)
    number: int = -1
    task: Task | None = None


def work(connection: Connection, encoding: Encoding, path: Path) -> None:
    """A worker's life: assignments come in, each is answered, until the connection closes, be it that the parent died.

    The answer is the `EncodedChunk` of the assignment's task, or None without one; the `OSError` of a write that
    failed; or the text of the traceback of what should not happen.
    """
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # Pillow's, about large images and odd palettes
    if encoding.max_resolution:
        # All workers load numba at once; the first large image is too late, as the others would have to wait for it.
        shrink(np.zeros((2, 2, 3), np.uint8), 1)
    kept: dict[int, list[bytes | memoryview]] = {}
    with contextlib.suppress(EOFError, OSError), path.open("r+b", buffering=0) as file:
        hold(file)
        while True:
            connection.send(_answer(connection.recv(), encoding, file.fileno(), kept))


def _answer(assignment: Assignment, encoding: Encoding, file: int, kept: dict[int, list[bytes | memoryview]]) -> object:
    try:
        for number, positions in assignment.positions.items():
            contents = kept.pop(number)
            if positions:
                write_samples(file, positions, contents)
        if assignment.task is None:
            return None
        chunk, kept[assignment.number] = encode_task(encoding, assignment.task)
        return chunk
    except OSError as error:
        return error
    except Exception:
        return traceback.format_exc()


def hold(file: BufferedRandom | FileIO) -> bool:
    """Say that this process writes to `file`; False where another one claims it, or the file system has no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False


def write_samples(file: int, positions: Sequence[int], contents: Sequence[bytes | memoryview]) -> None:
    """Write each of `contents` to its position in `file`, a descriptor; those that lie end to end in one call.

    Raises `OSError`, for example on a full disk.
    """
    first = 0
    for i in range(1, len(contents) + 1):
        if i == len(contents) or i - first == _MAX_BUFFERS or positions[i] != positions[i - 1] + len(contents[i - 1]):
            _write_all(file, positions[first], contents[first:i])
            first = i


def _write_all(file: int, position: int, contents: Sequence[bytes | memoryview]) -> None:
    written = os.pwritev(file, contents, position)
    for data in contents:
        # A nearly full disk takes a part; going on from there gives its error.
        rest = memoryview(data)[min(written, len(data)) :]
        written -= len(data) - len(rest)
        position += len(data) - len(rest)
        while rest:
            count = os.pwrite(file, rest, position)
            rest, position = rest[count:], position + count
