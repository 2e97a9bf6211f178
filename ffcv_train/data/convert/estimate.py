"""What a conversion will take: some images are encoded for a try."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_train.data.convert.encoding import EncodedChunk, Task
from ffcv_train.data.convert.pool import WorkerPool
from ffcv_train.data.sources.source import Source
from ffcv_train.system.errors import UserError
from ffcv_train.system.resources import usable_cores

_MIN_PROBES, _MAX_PROBES, _PROBE_SECONDS = 16, 64, 1.0


@dataclass(frozen=True)
class ConversionEstimate:
    """Means over `probes` images that could be stored; without any, nothing is known and all are 0."""

    probes: int = 0
    bytes_per_image: float = 0.0
    images_per_second: float = 0.0
    """Of one worker"""


def estimate(
    pool: WorkerPool, source: Source, first: int, count: int, check: Callable[[EncodedChunk], None]
) -> ConversionEstimate:
    """Encode a few of the images `first` … `count` − 1, and if those were quick, more: sizes scatter by about 60%.

    `check` is called with what became of each.
    """
    sizes: list[int] = []
    seconds: list[float] = []

    def probe(number: int) -> None:
        indices = np.linspace(first, count - 1, number, dtype=np.int64).tolist()
        for chunk in pool.map(Task([index], [source.place(index)]) for index in indices):
            check(chunk)
            if chunk.samples:
                sizes.append(chunk.samples[0].size)
                seconds.append(chunk.seconds)

    probe(min(count - first, _MIN_PROBES))
    if seconds:
        affordable = int(_PROBE_SECONDS * len(pool) / float(np.median(seconds)))
        more = min(affordable, (count - first) // 25, _MAX_PROBES)
        if more > _MIN_PROBES:
            probe(more)
    if not sizes:
        return ConversionEstimate()
    # The slowest tenth: a process's first image, and files that the disk had to look for.
    quick = np.sort(seconds)[: max(1, int(0.9 * len(seconds)))]
    return ConversionEstimate(len(sizes), float(np.mean(sizes)), 1 / float(np.mean(quick)))


def seconds_for(images: int, estimated: ConversionEstimate, workers: int) -> float:
    """How long `images` will take."""
    return images / (estimated.images_per_second * min(workers, usable_cores()))


def check_space(target: Path, size: float, present: int) -> None:
    """Raise `UserError` where `target`, of `size` bytes of which `present` are written, will not fit its disk."""
    free = shutil.disk_usage(target.parent).free
    if size - present > free:
        raise UserError(
            f"{target} will have about {readable_size(size)}, but {target.parent} has only {readable_size(free)} free; "
            f"free space there, choose another disk, or store less with --cfg.max_resolution and --cfg.write_mode=jpg"
        )


def readable_size(size: float) -> str:
    """`size` bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.{1 if size < 10 and unit != 'B' else 0}f} {unit}"
