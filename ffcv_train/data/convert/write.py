"""write_dataset.py: images to a .beton file and its sidecar, completely or not at all.

Worker processes read, decode, shrink, encode and write; this process alone says where to, in the order of the samples,
so the file depends on images and options only, not on the number of workers.
"""

import contextlib
import glob
import json
import os
import secrets
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import option
from ffcv_train.data.convert.encoding import EncodedChunk, Encoding, Task
from ffcv_train.data.convert.pool import WorkerPool
from ffcv_train.data.convert.publish import publish
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.layout import MAX_SAMPLE_BYTES, pair_digest
from ffcv_train.data.format.pagefile import DEFAULT_PAGE_SIZE, MIN_PAGE_SIZE, PageFile, tables_crc
from ffcv_train.data.sources.indexed import IndexedSource
from ffcv_train.data.sources.open import SOURCES, open_source
from ffcv_train.data.sources.source import Request, Source
from ffcv_train.system.environment import versions
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine, duration
from ffcv_train.system.resources import usable_cores
from ffcv_train.system.signals import StopSignals

# Beyond this the list of files would make the sidecar unwieldy.
_MAX_LISTED_FILES = 2_000_000
_TEMPORARY = ".tmp-"
_MIN_PROBES, _MAX_PROBES, _PROBE_SECONDS = 16, 64, 1.0
_CHUNK_SECONDS = 0.2
_CHUNK_BYTES = 4 << 20
_MAX_CHUNK = 1000


@dataclass(frozen=True)
class WriteConfig:
    """What to write, and how; names as in FFCV's ImageNet scripts."""

    dataset: str = option("imagenet", "kind of source; cifar is cifar10", choices=tuple(SOURCES))
    split: str = option("train", "which part of the data set", choices=("train", "val"))
    data_dir: str = option("", "folder of the images or archives; webdataset: also a glob or brace pattern")
    write_path: str = option("", ".beton file to write")
    write_mode: str = option(
        "smart",
        "jpg; raw pixels; smart: JPEG above smart_threshold; proportion: JPEG with compress_probability",
        choices=("raw", "jpg", "smart", "proportion"),
    )
    max_resolution: int = option(0, "longest side in pixels, larger images are shrunk; 0: no limit", min=0)
    num_workers: int = option(0, "worker processes; 0: one per core", min=0, max=4096)
    chunk_size: int = option(0, "most images per task of a worker (and 4 MiB); 0: about 0.2 s of work", min=0)
    jpeg_quality: int = option(90, "JPEG quality", min=1, max=100)
    subset: int = option(-1, "how many images to write, the first ones; -1: all", min=-1)
    compress_probability: float = option(0.5, "proportion: probability of JPEG, per image", min=0.0, max=1.0)
    smart_threshold: int = option(1 << 16, "smart: images of more bytes as pixels than this become JPEG", min=0)
    seed: int = option(0, "proportion: seed of the choice", min=0)
    tiles: bool = option(True, "restart markers in JPEGs, so that a crop decodes only its part; 0: as FFCV writes")
    on_error: str = option("stop", "at an unreadable image", choices=("stop", "skip"))
    classes: str = option("", "imagenet, zip, webdataset: file of class names in label order, or a .beton with them")
    download: bool = option(False, "cifar10, cifar100: download to data_dir what is missing")
    page_size: int = option(
        DEFAULT_PAGE_SIZE, "bytes per page, a power of two; grows to hold the largest image", min=MIN_PAGE_SIZE
    )


@dataclass(frozen=True)
class WriterRun:
    """The command line of write_dataset.py."""

    cfg: WriteConfig = WriteConfig()


@dataclass
class Written:
    """What the sidecar says of the samples: their indices in the source, the CRC-32 of each, and who is missing why."""

    indices: array = field(default_factory=lambda: array("q"))
    crcs: array = field(default_factory=lambda: array("I"))
    skipped: list[tuple[int, str]] = field(default_factory=list)


def convert(config: WriteConfig, source: Source | None = None, progress: ProgressLine | None = None) -> Path:
    """Write `config.write_path` and its sidecar; both appear when they are complete and checked, or stay as they were.

    `source` stands in place of the one that `config` names. Raises `UserError` for what a user can cause,
    `KeyboardInterrupt` on Ctrl-C; either way nothing is left behind.
    """
    start = time.perf_counter()
    progress = progress or ProgressLine(plain_interval=10.0)
    target = _check_target(config)
    if source is None:
        source = open_source(config.dataset, Request(config.data_dir, config.split, config.classes, config.download))
    count = min(len(source), config.subset) if config.subset > 0 else len(source)
    workers = min(config.num_workers or usable_cores(), count)
    progress.print(f"{count} images, {len(source.class_names)} classes from {config.data_dir}, {workers} workers")
    for note in source.notes:
        progress.print(f"note: {note}")
    present, whole = (len(np.unique(labels)) for labels in (source.labels[:count], source.labels))
    if present < whole:
        progress.print(
            f"note: the first {count} images, which --cfg.subset takes, are of {present} of the {whole} classes; "
            "for a smaller set of all classes, make a folder or map of it"
        )

    for stale in sorted(target.parent.glob(f"{glob.escape(target.name)}{_TEMPORARY}*")):
        progress.print(f"note: {stale} is of a run that was killed, or is still at work; if killed, delete it")

    temporary = target.with_name(f"{target.name}{_TEMPORARY}{secrets.token_hex(4)}")
    with StopSignals(target) as signals, contextlib.ExitStack() as cleanup:
        try:
            cleanup.callback(_remove, temporary, sidecar_path(temporary))
            pages = PageFile(temporary, count, config.page_size)
            cleanup.callback(pages.close)
            pool = cleanup.enter_context(WorkerPool(workers, _encoding(config), temporary))
            cleanup.callback(signals.ignore)
            chunk_size = _estimate(pool, source, count, config, target, progress)
            written = _write_pages(pool, source, count, chunk_size, config, pages, progress)
            pair = _pair(source, written)
            pages.finish(pair)
            _write_text(sidecar_path(temporary), json.dumps(_sidecar(config, source, written, temporary, pair)))
            _check(temporary, source, written)
            signals.ignore()
            # In between there is a sidecar that does not fit, which every reader notices, or one alone.
            publish([(sidecar_path(temporary), sidecar_path(target)), (temporary, target)])
        except OSError as error:
            raise UserError(f"writing {target} failed: {error.strerror or error}; it is as it was before") from error
        finally:
            progress.close()
    seconds = time.perf_counter() - start
    skipped = f" ({len(written.skipped)} skipped, listed in {sidecar_path(target).name})" if written.skipped else ""
    progress.print(
        f"{target}: {len(written.indices)} samples{skipped}, {_size(target.stat().st_size)}, {duration(seconds)}, "
        f"{count / seconds:.0f} images/s"
    )
    return target


def _check_target(config: WriteConfig) -> Path:
    """The file to write, links followed; raises `UserError` where it could not be written."""
    for name in ("data_dir", "write_path"):
        if not getattr(config, name):
            raise UserError(f"--cfg.{name} is missing; see --help")
    size = config.page_size
    if size & (size - 1) or size > MAX_SAMPLE_BYTES:
        raise UserError(f"--cfg.page_size must be a power of two up to {MAX_SAMPLE_BYTES}, not {size}")
    target = Path(config.write_path).resolve()
    if target.is_dir():
        raise UserError(f"--cfg.write_path: {target} is a folder; name a file in it, such as {target / 'train.beton'}")
    if not target.parent.is_dir():
        raise UserError(f"--cfg.write_path: the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"--cfg.write_path: the folder {target.parent} is not writable; choose another")
    return target


def _encoding(config: WriteConfig) -> Encoding:
    return Encoding(
        config.write_mode,
        config.max_resolution,
        config.jpeg_quality,
        config.compress_probability,
        config.smart_threshold,
        config.seed,
        config.tiles,
        config.on_error == "stop",
    )


def _estimate(
    pool: WorkerPool, source: Source, count: int, config: WriteConfig, target: Path, progress: ProgressLine
) -> int:
    """Encode some images for a try, say what size and time to expect, check free disk; the images per task."""
    sizes: list[int] = []
    seconds: list[float] = []

    def probe(number: int) -> None:
        indices = np.linspace(0, count - 1, number, dtype=np.int64).tolist()
        for chunk in pool.map(Task([index], [source.place(index)]) for index in indices):
            _stop_at_failure(chunk.failures, source, config)
            if chunk.samples:
                sizes.append(chunk.samples[0].size)
                seconds.append(chunk.seconds)

    # A few, and if those were quick, more: sizes scatter by about 60%.
    probe(min(count, _MIN_PROBES))
    if seconds:
        affordable = int(_PROBE_SECONDS * len(pool) / float(np.median(seconds)))
        more = min(affordable, count // 25, _MAX_PROBES)
        if more > _MIN_PROBES:
            probe(more)
    if not sizes:
        return config.chunk_size or 1
    per_image = float(np.mean(sizes))
    # The slowest tenth: a process's first image, and files that the disk had to look for.
    per_second = 1 / float(np.mean(np.sort(seconds)[: max(1, int(0.9 * len(seconds)))]))
    expected = per_image * count + 2 * config.page_size
    remaining = duration(count / (per_second * min(len(pool), usable_cores())))
    progress.print(f"estimate: {_size(expected)}, {remaining} (from {len(sizes)} images)")
    free = shutil.disk_usage(target.parent).free
    if expected > free:
        raise UserError(
            f"{target} will have about {_size(expected)}, but {target.parent} has only {_size(free)} free; free space "
            f"there, choose another disk, or store less with --cfg.max_resolution and --cfg.write_mode=jpg"
        )
    chunk_size = config.chunk_size or min(_CHUNK_SECONDS * per_second, count / (4 * len(pool)), _MAX_CHUNK)
    return max(1, int(min(chunk_size, _CHUNK_BYTES / per_image)))


def _write_pages(
    pool: WorkerPool,
    source: Source,
    count: int,
    chunk_size: int,
    config: WriteConfig,
    pages: PageFile,
    progress: ProgressLine,
) -> Written:
    """Encode all samples and have them written in order."""
    written = Written()
    start = time.perf_counter()

    def place(chunk: EncodedChunk) -> list[int]:
        _stop_at_failure(chunk.failures, source, config)
        return [pages.append(sample, int(source.labels[sample.index])) for sample in chunk.samples]

    for chunk in pool.map(_tasks(source, count, chunk_size), place):
        written.skipped += chunk.failures
        written.indices.extend(sample.index for sample in chunk.samples)
        written.crcs.extend(sample.crc for sample in chunk.samples)
        if progress.due():
            done = len(written.indices) + len(written.skipped)
            rate = done / (time.perf_counter() - start)
            skipped = f", {len(written.skipped)} skipped" if written.skipped else ""
            details = f"{rate:.0f} images/s, {_size(pages.size)}{skipped}, {duration((count - done) / rate)} left"
            progress.show("images", done, count, details)
    if not written.indices:
        index, reason = written.skipped[0]
        raise UserError(f"none of the {count} images can be stored; the first, {source.name(index)}, {reason}")
    return written


def _tasks(source: Source, count: int, chunk_size: int) -> Iterator[Task]:
    for first in range(0, count, chunk_size):
        indices = range(first, min(first + chunk_size, count))
        yield Task(indices, [source.place(index) for index in indices])


def _stop_at_failure(failures: Iterable[tuple[int, str]], source: Source, config: WriteConfig) -> None:
    if config.on_error == "stop":
        for index, reason in failures:
            raise UserError(
                f"{source.name(index)} in {config.data_dir} {reason}; repair or remove it, or leave such images out "
                f"with --cfg.on_error=skip"
            )


def _pair(source: Source, written: Written) -> str:
    return pair_digest(source.labels[np.asarray(written.indices)], np.asarray(written.crcs), source.class_names)


def _sidecar(config: WriteConfig, source: Source, written: Written, beton: Path, pair: str) -> dict[str, Any]:
    labels = source.labels[np.asarray(written.indices)]
    sidecar: dict[str, Any] = {
        "format": 1,
        "num_samples": len(written.indices),
        "class_names": list(source.class_names),
        "class_counts": np.bincount(labels, minlength=len(source.class_names)).tolist(),
        "split": config.split,
        "source": {**_origin(config, source), "num_images": len(source)},
        "settings": to_dict(WriterRun(config))["cfg"],
        "skipped": [{"name": source.name(index), "reason": reason} for index, reason in written.skipped],
        "versions": {
            **versions(),
            "pillow": PIL.__version__,
            "simplejpeg": simplejpeg.__version__,
            "opencv": cv2.__version__,
        },
        "checksums": {
            "algorithm": "crc32",
            "pair": pair,
            "tables": f"{tables_crc(beton):08x}",
            "samples": "".join(f"{crc:08x}" for crc in written.crcs),
        },
    }
    if len(written.indices) <= _MAX_LISTED_FILES:
        sidecar["files"] = [source.name(index) for index in written.indices]
    return sidecar


def _origin(config: WriteConfig, source: Source) -> dict[str, str]:
    if isinstance(source, IndexedSource):
        return {"dataset": source.kind}
    # A glob may hold "..": leave links alone.
    return {"dataset": config.dataset, "data_dir": os.path.abspath(config.data_dir)}  # noqa: PTH100


def _check(beton: Path, source: Source, written: Written) -> None:
    """Read the tables back from the file."""
    if not np.array_equal(open_beton(beton).labels, source.labels[np.asarray(written.indices)]):
        raise UserError(f"{beton} does not read back as it was written; is the disk sound?")


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.{1 if size < 10 and unit != 'B' else 0}f} {unit}"
