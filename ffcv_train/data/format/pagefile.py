"""The layout of a .beton file while it is written: where each sample goes, then the tables, the header last."""

import contextlib
import zlib
from pathlib import Path

import numpy as np

from ffcv_train.data.format.layout import (
    ALLOCATION,
    FIELD_DESCRIPTION,
    FORMAT_VERSION,
    HEADER,
    IMAGE_TYPE_ID,
    INT_TYPE_ID,
    MAX_SAMPLE_BYTES,
    PAIR_MARK,
    SAMPLE,
    EncodedSample,
)
from ffcv_train.system.files import sync_file

MIN_PAGE_SIZE = 1 << 21
DEFAULT_PAGE_SIZE = 1 << 23
"""Both are FFCV's."""

_FIELDS = ((b"image", IMAGE_TYPE_ID), (b"label", INT_TYPE_ID))
_TABLES_START = HEADER.itemsize + len(_FIELDS) * FIELD_DESCRIPTION.itemsize


class Placement:
    """Where samples go in a file of at most `max_samples`: one after the other, none across a boundary of pages.

    A sample larger than a page makes all pages larger: the next power of two that holds it. Boundaries of the larger
    pages are boundaries of the smaller ones, so what is written stays as it is.
    """

    def __init__(self, max_samples: int, page_size: int) -> None:
        self.page_size = page_size
        self.position = _round_up(_TABLES_START + max_samples * SAMPLE.itemsize, page_size)

    def place(self, size: int) -> int:
        """Where the next sample, of `size` bytes, begins."""
        if not 0 < size <= MAX_SAMPLE_BYTES:
            raise ValueError(f"a sample of {size} bytes")
        while size > self.page_size:
            self.page_size *= 2
        if self.position // self.page_size != (self.position + size - 1) // self.page_size:
            self.position = _round_up(self.position, self.page_size)
        self.position += size
        return self.position - size


class PageFile:
    """A .beton file with the fields `image` and `label` that grows sample by sample, up to `max_samples`.

    It gives out the places (`Placement`); the samples' bytes are written by others (worker.py), while this holds tables
    and header. Until `finish` the header is zeros, which no reader takes for a .beton file. Of a file that exists,
    nothing is touched before `truncate`.

    `OSError` passes through, for example on a full disk.
    """

    def __init__(self, path: Path, max_samples: int, page_size: int = DEFAULT_PAGE_SIZE) -> None:
        self._placement = Placement(max_samples, page_size)
        self._samples = np.zeros(max_samples, SAMPLE)
        self._regions = np.zeros(max_samples, ALLOCATION)
        self._count = 0
        path.touch()
        self._file = path.open("r+b", buffering=1 << 20)

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._placement.position

    def append(self, sample: EncodedSample, label: int) -> int:
        """Enter a sample's row; returns the position in the file that its bytes are to be written to."""
        position = self._placement.place(sample.size)
        image = (sample.mode, sample.width, sample.height, position)
        self._samples[self._count] = (image, label)
        self._regions[self._count] = (self._count, position, sample.size)
        self._count += 1
        return position

    def truncate(self) -> None:
        """Drop what the file holds beyond the samples entered so far, and tables and header that may be there."""
        self._file.truncate(self.size)
        self._file.seek(0)
        self._file.write(bytes(_TABLES_START + self._samples.nbytes))
        self._file.flush()

    def finish(self, pair: str = "") -> None:
        """Write tables and header, and bring all to the disk; the samples' bytes must be written.

        `pair` is the digest that the sidecar holds too; without one, any sidecar may belong to the file.
        """
        end = _round_up(self.size, self._placement.page_size)  # what is skipped reads as zeros
        self._file.seek(end)
        samples, regions = self._samples[: self._count], self._regions[: self._count]
        header = np.zeros(1, HEADER)
        header["version"] = FORMAT_VERSION
        header["num_fields"] = len(_FIELDS)
        header["page_size"] = self._placement.page_size
        header["num_samples"] = self._count
        header["alloc_table_ptr"] = end
        fields = np.zeros(len(_FIELDS), FIELD_DESCRIPTION)
        for row, (name, type_id) in zip(fields, _FIELDS, strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = np.frombuffer(name, np.uint8)
        mark = PAIR_MARK + pair.encode() if pair else b""
        fields["arguments"][-1][: len(mark)] = np.frombuffer(mark, np.uint8)
        self._file.write(regions.tobytes())
        self._file.seek(HEADER.itemsize)
        self._file.write(fields.tobytes() + samples.tobytes())
        sync_file(self._file)
        # Everything else is on the disk before the header makes the file valid.
        self._file.seek(0)
        self._file.write(header.tobytes())
        sync_file(self._file)
        self._file.close()

    def close(self) -> None:
        """Close the file, unfinished as it may be."""
        with contextlib.suppress(OSError):  # closing flushes, which fails once more on a full disk
            self._file.close()


def tables_crc(path: Path) -> int:
    """The CRC-32 of everything in a .beton file but the pages: from the start through the sample table, and the end."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]
        file.seek(0)
        head = file.read(_TABLES_START + int(header["num_samples"]) * SAMPLE.itemsize)
        file.seek(int(header["alloc_table_ptr"]))
        return zlib.crc32(file.read(), zlib.crc32(head))


def _round_up(position: int, page_size: int) -> int:
    return -(-position // page_size) * page_size
