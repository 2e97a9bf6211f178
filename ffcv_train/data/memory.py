"""How much memory there is for holding a data set."""

from pathlib import Path

import psutil

from ffcv_train.data.beton import Beton
from ffcv_train.errors import UserError

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


def check_fits(beton: Beton, available: int) -> None:
    """Raise `UserError` when the file is larger than `available` bytes."""
    if beton.file_size > available:
        raise UserError(
            f"{beton.path} has {beton.file_size / 2**30:.1f} GiB, but only {available / 2**30:.1f} GiB of memory are "
            f"available; train with --data.in_memory=0"
        )
