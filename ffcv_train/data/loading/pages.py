"""Reading a .beton without the page cache: whole pages, each read once an epoch, freed after its last batch.

FFCV's process cache does the same, but its reader threads ignore read errors (the batch then shows old bytes) and
outlive the epoch; here a failed or short read raises in the consumer.
"""

import os
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.data.loading.source_file import SourceFile
from ffcv_train.data.loading.threads import Threads
from ffcv_train.system.errors import UserError


class PageCache:
    """The pages that the batches under way need. `begin`, `acquire` and `release` are called by one thread."""

    def __init__(self, path: Path, page_size: int, file_size: int, num_threads: int) -> None:
        self._path = path
        self._page_size = page_size
        self._file_size = file_size
        self._file = SourceFile(path, file_size)
        self._pool = Threads(num_threads, "pages")
        self._free: list[np.ndarray] = []
        self._pages: dict[int, tuple[np.ndarray, Future[Any]]] = {}
        self._uses: Counter[int] = Counter()

    def begin(self, pages_of_batches: list[np.ndarray]) -> None:
        """Announce an epoch: the pages (unique, int64) of each batch, in order."""
        self._reset()
        self._uses = Counter(int(page) for pages in pages_of_batches for page in pages)

    def acquire(self, pages: np.ndarray) -> list[Future[Any]]:
        """Start reading those of a batch's pages that are not here yet; the futures end when they are."""
        for page in map(int, pages):
            if page not in self._pages:
                buffer = self._free.pop() if self._free else np.empty(self._page_size, np.uint8)
                self._pages[page] = (buffer, self._pool.submit(self._read, page, buffer))
        return [self._pages[int(page)][1] for page in pages]

    def addresses(self, ptrs: np.ndarray) -> np.ndarray:
        """Where in memory (uint64) the bytes at these file positions lie or will lie; their pages are acquired."""
        bases = [self._pages[int(ptr) // self._page_size][0].ctypes.data for ptr in ptrs]
        return np.array(bases, np.uint64) + (ptrs % self._page_size).astype(np.uint64)

    def release(self, pages: np.ndarray) -> None:
        """A batch is decoded: its pages that no later batch needs give their memory to the next ones."""
        for page in map(int, pages):
            self._uses[page] -= 1
            if self._uses[page] == 0:
                self._free.append(self._pages.pop(page)[0])

    def close(self, seconds: float) -> bool:
        """Stop reading and close the file; whether that was done within `seconds`, else nothing is closed."""
        ended = self._pool.close(seconds)
        if ended:
            self._reset()
            self._file.close()
        return ended

    def _reset(self) -> None:
        for _, future in self._pages.values():
            future.cancel()
        for buffer, future in self._pages.values():
            if not future.cancelled():
                future.exception()
            self._free.append(buffer)
        self._pages.clear()

    def _read(self, page: int, buffer: np.ndarray) -> None:
        start = page * self._page_size
        wanted = min(self._page_size, self._file_size - start)
        done = 0
        self._file.check()
        while done < wanted:
            try:
                count = os.preadv(self._file.file.fileno(), [buffer[done:wanted].data], start + done)
            except OSError as error:
                raise UserError(f"reading {self._path} at byte {start + done} failed: {error.strerror}") from error
            if count == 0:
                raise UserError(f"{self._path} ended at byte {start + done} while it was being read; was it changed?")
            done += count
