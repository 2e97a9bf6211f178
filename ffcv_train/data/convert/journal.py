"""What an unfinished .beton file holds so far, in a file beside it: a line per task, in the order of the samples.

The journal may be ahead of the file, or torn at its end: whoever goes on from it compares every sample's bytes with the
checksum that stands here (`verified`).
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ffcv_train.data.convert.encoding import EncodedChunk, stamp_of
from ffcv_train.data.format.layout import EncodedSample
from ffcv_train.data.format.pagefile import Placement
from ffcv_train.data.sources.source import Place
from ffcv_train.system.progress import ProgressLine


class Journal:
    """Appends what was done to the journal at `path`; a context that closes it.

    `fingerprint` says of what run it is, as plain JSON. `kept` are the first chunks that an existing one lists, after
    which it is cut off.
    """

    def __init__(self, path: Path, fingerprint: Any, kept: Sequence[EncodedChunk] = ()) -> None:
        if kept:
            os.truncate(path, len(_line(fingerprint)) + sum(len(_line(_to_plain(chunk))) for chunk in kept))
        self._file = path.open("a", encoding="ascii")
        if not kept:
            self._file.write(_line(fingerprint))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, chunk: EncodedChunk) -> None:
        """Write it down before this returns, as far as a kill of this process goes; raises `OSError`."""
        self._file.write(_line(_to_plain(chunk)))
        self._file.flush()


def read_journal(path: Path, fingerprint: Any) -> list[EncodedChunk] | None:
    """What the journal at `path` lists, up to its first torn line; None where it is another run's or unreadable."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            if next(file, "") != _line(fingerprint):
                return None
            chunks = []
            for line in file:
                checksum, _, body = line.partition(" ")
                if not line.endswith("\n") or checksum != f"{zlib.crc32(body.encode()):08x}":
                    break
                stamp, samples, failures, damaged = json.loads(body)
                chunks.append(
                    EncodedChunk(
                        [EncodedSample(*sample) for sample in samples],
                        [(index, reason) for index, reason in failures],
                        [(index, reason) for index, reason in damaged],
                        stamp=stamp,
                    )
                )
    except (OSError, UnicodeDecodeError):
        return None
    return chunks


def verified(
    chunks: Sequence[EncodedChunk],
    file: BinaryIO,
    placement: Placement,
    place: Callable[[int], Place],
    progress: ProgressLine,
) -> list[EncodedChunk]:
    """The first of `chunks` that are true: no source has changed, and `file` holds the bytes of all their samples.

    `placement` is that of an empty file, and is used up; `place` gives a sample's source.
    """
    total = sum(len(chunk.samples) + len(chunk.failures) for chunk in chunks)
    true: list[EncodedChunk] = []
    done = 0
    with contextlib.suppress(OSError):  # what cannot be read is not there
        for chunk in chunks:
            indices = sorted([sample.index for sample in chunk.samples] + [index for index, _ in chunk.failures])
            if indices != list(range(done, done + len(indices))) or chunk.stamp != stamp_of(map(place, indices)):
                break
            if not all(_is_there(sample, placement.place(sample.size), file) for sample in chunk.samples):
                break
            true.append(chunk)
            done += len(indices)
            progress.show("verified", done, total, "images")
    return true


def _is_there(sample: EncodedSample, position: int, file: BinaryIO) -> bool:
    file.seek(position)
    data = file.read(sample.size)
    return len(data) == sample.size and zlib.crc32(data) == sample.crc


def _line(content: Any) -> str:
    body = json.dumps(content, separators=(",", ":")) + "\n"
    return f"{zlib.crc32(body.encode()):08x} {body}"


def _to_plain(chunk: EncodedChunk) -> Any:
    rows = [[s.index, s.mode, s.height, s.width, s.size, s.crc] for s in chunk.samples]
    return [chunk.stamp, rows, chunk.failures, chunk.damaged]
