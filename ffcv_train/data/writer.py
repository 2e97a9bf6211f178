"""write_dataset.py: images to a .beton file and its sidecar, completely or not at all.

Worker processes read, decode, shrink and encode; this process alone writes, in the order of the samples, so the file
depends on images and options only, not on the number of workers.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import PIL

from ffcv_train.config import load_config, option, to_dict
from ffcv_train.data.beton import open_beton, sidecar_path
from ffcv_train.data.encoding import MAX_SAMPLE_BYTES, EncodedSample, Encoding, Task
from ffcv_train.data.pagefile import DEFAULT_PAGE_SIZE, MIN_PAGE_SIZE, PageFile, tables_crc
from ffcv_train.data.pool import WorkerPool, usable_cores
from ffcv_train.data.sources import SOURCES, Request, Source, open_source
from ffcv_train.data.verify import verify
from ffcv_train.environment import versions
from ffcv_train.errors import UserError
from ffcv_train.progress import ProgressLine, duration

# Beyond this the list of files would make the sidecar unwieldy.
_MAX_LISTED_FILES = 2_000_000
_PROBES = 64
_CHUNK_SECONDS = 0.2
_CHUNK_BYTES = 8 << 20
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
    chunk_size: int = option(0, "images per task of a worker; 0: about 0.2 s of work", min=0)
    jpeg_quality: int = option(90, "JPEG quality", min=1, max=100)
    subset: int = option(-1, "how many images to write, the first ones; -1: all", min=-1)
    compress_probability: float = option(0.5, "proportion: probability of JPEG, per image", min=0.0, max=1.0)
    smart_threshold: int = option(1 << 16, "smart: images of more bytes as pixels than this become JPEG", min=0)
    seed: int = option(0, "proportion: seed of the choice", min=0)
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
    """What is known of the file while it grows."""

    samples: list[EncodedSample] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)


def command(argv: Sequence[str]) -> None:
    """Run write_dataset.py's command line: `--verify F.beton`, or options that say what to write."""
    if argv and argv[0].split("=")[0] == "--verify":
        files = [*argv[0].split("=", 1)[1:], *argv[1:]]
        if len(files) != 1:
            raise UserError("--verify takes one .beton file and nothing else")
        verify(files[0])
        return
    description = "Write images into a .beton file. With --verify F.beton alone: check one, decoding every image."
    write_dataset(load_config(WriterRun, argv, description).cfg)


def write_dataset(config: WriteConfig, progress: ProgressLine | None = None) -> Path:
    """Write `config.write_path` and its sidecar; both appear when they are complete and checked, or stay as they were.

    Raises `UserError` for what a user can cause, `KeyboardInterrupt` on Ctrl-C; either way nothing is left behind.
    """
    start = time.perf_counter()
    progress = progress or ProgressLine(plain_interval=10.0)
    target = _check_target(config)
    source = open_source(config.dataset, Request(config.data_dir, config.split, config.classes, config.download))
    count = min(len(source), config.subset) if config.subset > 0 else len(source)
    workers = min(config.num_workers or usable_cores(), count)
    progress.print(f"{count} images, {len(source.class_names)} classes from {config.data_dir}, {workers} workers")
    for note in source.notes:
        progress.print(f"note: {note}")

    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    with _StopSignals() as signals, contextlib.ExitStack() as cleanup:
        cleanup.callback(_remove, temporary, sidecar_path(temporary))
        # Pushed last, so that it runs first: a second Ctrl-C shall not cut the cleaning short.
        pages = _open_pages(temporary, target, count, config.page_size)
        cleanup.callback(pages.close)
        pool = cleanup.enter_context(WorkerPool(workers, _encoding(config)))
        cleanup.callback(signals.ignore)
        try:
            chunk_size = _estimate(pool, source, count, config, workers, target, progress)
            written = _write_pages(pool, source, count, chunk_size, pages, progress)
            progress.close()
            pages.finish()
            sidecar = _sidecar(config, source, count, written, temporary)
            _write_text(sidecar_path(temporary), json.dumps(sidecar))
            _check(temporary, source, written)
            signals.ignore()
            _publish(temporary, target)
        except OSError as error:
            raise UserError(f"writing {target} failed: {error.strerror or error}; nothing was written") from error
        finally:
            progress.close()
    seconds = time.perf_counter() - start
    skipped = f" ({len(written.skipped)} skipped, listed in {sidecar_path(target).name})" if written.skipped else ""
    progress.print(
        f"{target}: {len(written.samples)} samples{skipped}, {_size(target.stat().st_size)}, {duration(seconds)}, "
        f"{count / seconds:.0f} images/s"
    )
    return target
