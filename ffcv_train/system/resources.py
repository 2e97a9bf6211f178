"""What this machine has for this process: memory, and cores."""

import ctypes
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory that the page cache may fill: what the machine has free or reclaimable, within the container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (_CGROUP / "memory.max").read_text().strip(), (_CGROUP / "memory.current").read_text()
        # The page cache counts as used, and may hold the very file that is to be read again.
        cached = sum(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used) + cached)


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Give the system what glibc keeps of freed memory; takes milliseconds, does nothing with another C library.

    Its allocator learns from large blocks that are freed to keep the next ones, and blocks of ever other sizes leave
    holes that fit none: images of other sides, on a CPU.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
