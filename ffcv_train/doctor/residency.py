"""Which parts of a file the page cache holds."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np

_CHUNK_BYTES = 1 << 30


def resident_pages(path: str | Path) -> np.ndarray | None:
    """Whether each memory page (`mmap.PAGESIZE` bytes) of the file lies in the page cache, bool [pages].

    Asks Linux's mincore(2), which reads nothing. None where the system does not say: other systems; files that we may
    not write and do not own (Linux answers "all" since 5.2); sandboxes that answer "all" to everybody; empty files.
    Raises `OSError` where the file cannot be opened.
    """
    path = Path(path)
    if not sys.platform.startswith("linux") or path.stat().st_size == 0 or not _may_ask(path):
        return None
    untouched = _mincore(np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.uint8))
    if untouched is None or untouched.any():
        return None  # what nobody touched cannot be in memory: this answer is made up
    content = np.memmap(path, np.uint8, mode="r")
    chunks = [_mincore(content[a : a + _CHUNK_BYTES]) for a in range(0, len(content), _CHUNK_BYTES)]
    known = [chunk for chunk in chunks if chunk is not None]
    return np.concatenate(known) if len(known) == len(chunks) else None


def cached_share(resident: np.ndarray, ptrs: np.ndarray, sizes: np.ndarray, page_size: int = mmap.PAGESIZE) -> float:
    """The share in [0, 1] of the pages holding samples that are `resident` (bool [pages]).

    `ptrs` and `sizes` (int64 [N], at least one sample) are the samples' places in bytes; sizes are at least 1.
    """
    changes = np.zeros(len(resident) + 1, np.int64)
    np.add.at(changes, ptrs // page_size, 1)
    np.add.at(changes, (ptrs + sizes - 1) // page_size + 1, -1)
    holds_samples = np.cumsum(changes[:-1]) > 0
    return float(resident[holds_samples].mean())


def _may_ask(path: Path) -> bool:
    return os.access(path, os.W_OK) or path.stat().st_uid == os.geteuid()


def _mincore(mapped: np.ndarray) -> np.ndarray | None:
    """Whether the pages of a mapping (uint8, from a page's start) are in memory; None where mincore fails."""
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    failed = mincore(mapped.ctypes.data, len(mapped), flags.ctypes.data)
    return None if failed else (flags & 1).astype(bool)
