"""ffcv-train write: images to a .beton file and its sidecar, completely or not at all.

Worker processes read, decode, shrink, encode and write; this process alone says where to, in the order of the samples,
so the file depends on images and options only, not on the number of workers.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import option
from ffcv_train.data.convert.description import Written, all_versions, sidecar_of
from ffcv_train.data.convert.encoding import EncodedChunk, Encoding, Task
from ffcv_train.data.convert.estimate import check_space, estimate, readable_size, seconds_for
from ffcv_train.data.convert.journal import Journal
from ffcv_train.data.convert.pool import WorkerPool
from ffcv_train.data.convert.publish import publish
from ffcv_train.data.convert.unfinished import Unfinished, take_up
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.layout import MAX_SAMPLE_BYTES
from ffcv_train.data.format.pagefile import DEFAULT_PAGE_SIZE, MIN_PAGE_SIZE, PageFile, Placement
from ffcv_train.data.sources.indexed import IndexedSource
from ffcv_train.data.sources.open import SOURCES, open_source
from ffcv_train.data.sources.selection import (
    Selection,
    copies_of_images,
    describe_counts,
    long_tail,
    stratified_split,
)
from ffcv_train.data.sources.source import FileSource, Source, SourceOptions
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import sync_file
from ffcv_train.system.progress import ProgressLine, duration
from ffcv_train.system.resources import usable_cores
from ffcv_train.system.signals import StopSignals

_CHUNK_SECONDS = 0.2
_CHUNK_BYTES = 4 << 20
_MAX_CHUNK = 1000


@dataclass(frozen=True)
class WriteConfig:
    """What to write, and how; names as in FFCV's ImageNet scripts."""

    dataset: str = option("imagenet", "kind of source; cifar is cifar10", choices=tuple(SOURCES))
    split: str = option("train", "which part of the data set", choices=("train", "val"))
    data_dir: str = option("", "folder of the images or archives; webdataset: also a glob or brace pattern", path=True)
    write_path: str = option("", ".beton file to write", path=True)
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
    val_fraction: float = option(
        0.0,
        "this share of each class, chosen by seed, to a second file: train → val in write_path's name; 0: one file",
        max=0.9,
    )
    imbalance: float = option(
        1.0, "make a long tail: the largest class has so many times the smallest one's images; 1: all images", min=1.0
    )
    compress_probability: float = option(0.5, "proportion: probability of JPEG, per image", min=0.0, max=1.0)
    smart_threshold: int = option(1 << 16, "smart: images of more bytes as pixels than this become JPEG", min=0)
    seed: int = option(0, "seed of what is chosen: proportion, val_fraction, imbalance", min=0)
    tiles: bool = option(True, "restart markers in JPEGs, so that a crop decodes only its part; 0: as FFCV writes")
    level: float = option(
        0.0,
        "JPEGs keep a smaller one of this share of their sides, for crops that need no more; 0: none",
        min=0.0,
        max=0.95,
    )
    optimize: bool = option(
        False, "JPEGs with Huffman tables of their own: 4% smaller and decoded 4% faster, converted 1.4 times as long"
    )
    on_error: str = option(
        "stop",
        "at an unreadable image or damaged JPEG; keep: damaged JPEGs as far as they decode, listed in the sidecar",
        choices=("stop", "skip", "keep"),
    )
    max_megapixels: int = option(179, "largest image to decode, in million pixels", min=1)
    classes: str = option(
        "", "imagenet, zip, webdataset: file of class names in label order, or a .beton with them", path=True
    )
    download: bool = option(False, "cifar10, cifar100: download to data_dir what is missing")
    page_size: int = option(
        DEFAULT_PAGE_SIZE, "bytes per page, a power of two; grows to hold the largest image", min=MIN_PAGE_SIZE
    )


@dataclass(frozen=True)
class WriterRun:
    """The command line of ffcv-train write."""

    cfg: WriteConfig = WriteConfig()


@dataclass(frozen=True)
class Part:
    """One file to write: the first `count` samples of `source`."""

    target: Path
    split: str
    source: Source
    count: int


def convert(config: WriteConfig, source: Source | None = None, progress: ProgressLine | None = None) -> Path:
    """Write `config.write_path` and its sidecar; both appear when they are complete and checked, or stay as they were.

    With `config.val_fraction` the same holds of both files, that of validation is `validation_path`. Goes on from what
    a killed run with the same options left. `source` stands in place of the one that `config` names. Raises `UserError`
    for what a user can cause, `KeyboardInterrupt` on Ctrl-C; either way nothing is left behind.
    """
    progress = progress or ProgressLine(plain_interval=10.0)
    target = _check_options(config)
    if source is None:
        source = open_source(
            config.dataset, SourceOptions(config.data_dir, config.split, config.classes, config.download)
        )
    for note in source.notes:
        progress.print(f"note: {note}")
    parts = _parts(config, source, target, progress)
    reports = []
    with StopSignals(target) as signals, contextlib.ExitStack() as cleanup:
        try:
            moves = []
            for part in parts:
                unfinished, report = _make(part, config, cleanup, signals, progress)
                reports.append(report)
                # In between there is a sidecar that does not fit, which every reader notices, or one alone.
                moves += [
                    (sidecar_path(unfinished.path), sidecar_path(part.target)),
                    (unfinished.path, part.target),
                ]
            signals.ignore()
            # Of two files the old second one must not be read beside the new first one: without a sidecar it is not.
            publish(moves, outdated=[sidecar_path(part.target) for part in parts[1:]])
        except OSError as error:
            raise UserError(f"writing {target} failed: {error.strerror or error}; it is as it was before") from error
        finally:
            progress.close()
    for part, report in zip(parts, reports, strict=True):
        progress.print(f"{part.target}: {report}")
    return target


def validation_path(write_path: Path) -> Path:
    """Where `val_fraction` puts the images for validation: `train.beton` → `val.beton`, `a.beton` → `a_val.beton`."""
    stem = write_path.stem
    stem = stem.replace("train", "val") if "train" in stem else f"{stem}_val"
    return write_path.with_name(stem + write_path.suffix)


def _parts(config: WriteConfig, source: Source, target: Path, progress: ProgressLine) -> list[Part]:
    """The files to write; says what goes where."""
    train, validation = source, None
    if config.val_fraction:
        if isinstance(source, FileSource) and source.root.name == "train" and source.root.with_name("val").is_dir():
            own = source.root.with_name("val")
            progress.print(f"note: {own} is left alone; --cfg.val_fraction takes its images from {source.root}")
        copies = copies_of_images(source)
        if copies:
            first = min(copies)
            progress.print(
                f"note: {sum(map(len, copies)) - len(copies)} images are copies of others, such as "
                f"{source.name(first[1])} of {source.name(first[0])}; copies go to the same file"
            )
        kept, held_out = stratified_split(source.labels, config.val_fraction, config.seed, copies)
        if not len(held_out):
            raise UserError(f"no class of {config.data_dir} has two images, one of which --cfg.val_fraction could take")
        train, validation = Selection(source, kept), Selection(source, held_out)
        lone = len(np.unique(source.labels)) - len(np.unique(validation.labels))
        if lone:
            progress.print(f"note: {lone} classes have no image for validation, as they have one, or copies of one")
    if config.imbalance > 1:
        train = Selection(train, long_tail(train.labels, len(train.class_names), config.imbalance, config.seed))
        progress.print(f"a long tail of {len(train)} images, {describe_counts(train.labels, train.class_names)}")
    count = min(len(train), config.subset) if config.subset > 0 else len(train)
    workers = min(config.num_workers or usable_cores(), count)
    progress.print(f"{count} images, {len(source.class_names)} classes from {config.data_dir}, {workers} workers")
    present, whole = (len(np.unique(labels)) for labels in (train.labels[:count], train.labels))
    if present < whole:
        progress.print(
            f"note: the first {count} images, which --cfg.subset takes, are of {present} of the {whole} classes; "
            "for a smaller set of all classes, make a folder or map of it"
        )
    parts = [Part(target, config.split, train, count)]
    if validation is not None:
        second = validation_path(target)
        progress.print(f"{len(validation)} more images, of every class, to {second}")
        parts.append(Part(second, "val", validation, len(validation)))
    return parts


def _make(
    part: Part, config: WriteConfig, cleanup: contextlib.ExitStack, signals: StopSignals, progress: ProgressLine
) -> tuple[Unfinished, str]:
    """The file of a part, complete but under its temporary name, which `cleanup` removes; and what to say of it."""
    start = time.perf_counter()
    source, count = part.source, part.count
    fingerprint = _fingerprint(config, source, count)
    placement = Placement(count, config.page_size)
    unfinished, chunks = take_up(part.target, fingerprint, placement, source.place, progress)
    cleanup.callback(unfinished.remove)
    cleanup.callback(signals.ignore)
    with contextlib.ExitStack() as closing:
        pages = PageFile(unfinished.path, count, config.page_size)
        closing.callback(pages.close)
        written = Written()
        for chunk in chunks:
            written.add(chunk)
            _enter(chunk, source, pages)
        if chunks:
            pages.truncate()
            progress.print(
                f"{len(written)} of the {count} images are in {unfinished.path.name}, which a killed run left, and "
                "were verified; it goes on from there"
            )
        taken_up = len(written)
        journal = closing.enter_context(Journal(unfinished.journal, fingerprint, chunks))
        workers = min(config.num_workers or usable_cores(), count - taken_up)
        pool = closing.enter_context(WorkerPool(workers, _encoding(config), unfinished.path))
        _write_pages(pool, part, config, pages, written, journal, progress)
        pages.finish(written.pair(source))
    settings = to_dict(WriterRun(config))["cfg"]
    sidecar = sidecar_of(unfinished.path, part.split, settings, _origin(config, source), source, written)
    _write_text(sidecar_path(unfinished.path), json.dumps(sidecar))
    _check(unfinished.path, source, written)
    seconds = time.perf_counter() - start
    listed = {"skipped": len(written.skipped), "damaged": len(written.damaged)}
    listing = "".join(f"{number} {what}, " for what, number in listed.items() if number)
    listing = f" ({listing}listed in {sidecar_path(part.target).name})" if listing else ""
    size = readable_size(unfinished.path.stat().st_size)
    rate = (count - taken_up) / seconds
    return unfinished, f"{len(written.indices)} samples{listing}, {size}, {duration(seconds)}, {rate:.0f} images/s"


def _fingerprint(config: WriteConfig, source: Source, count: int) -> Any:
    """What a file must have been begun with so that another run may go on with it, as plain JSON."""
    settings = to_dict(WriterRun(config))["cfg"]
    for name in ("num_workers", "chunk_size", "download", "write_path"):
        del settings[name]
    digest = hashlib.sha256(source.labels[:count].tobytes())
    for name in (*source.class_names, *(source.name(index) for index in range(count))):
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    origin = _origin(config, source)
    return {"settings": settings, "origin": origin, "source": digest.hexdigest(), "versions": all_versions()}


def _check_options(config: WriteConfig) -> Path:
    """The file to write, links followed; raises `UserError` where it could not be, or for options that do not fit."""
    if config.subset == 0:
        raise UserError("--cfg.subset=0 would write no images; give a number from 1, or -1 for all")
    for name, neutral in (("val_fraction", 0), ("imbalance", 1)):
        if config.subset > 0 and getattr(config, name) != neutral:
            raise UserError(f"--cfg.subset takes the first images, which --cfg.{name} chooses itself; leave one out")
    if config.val_fraction and config.split != "train":
        raise UserError("--cfg.val_fraction splits the images of --cfg.split=train; leave --cfg.split out")
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
    if config.val_fraction and validation_path(target).is_dir():
        raise UserError(f"--cfg.write_path: {validation_path(target)} is a folder; choose another name")
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
        config.level,
        config.optimize,
        config.on_error,
        config.max_megapixels,
    )


def _write_pages(
    pool: WorkerPool,
    part: Part,
    config: WriteConfig,
    pages: PageFile,
    written: Written,
    journal: Journal,
    progress: ProgressLine,
) -> None:
    """Encode all samples that are not in `written` yet, and have them written in order."""
    source, count, first = part.source, part.count, len(written)
    if first < count:
        chunk_size = _foresee(pool, source, first, count, config, pages, part.target, progress)
        start = time.perf_counter()

        def place(chunk: EncodedChunk) -> list[int]:
            _stop_at_failure(chunk, source, config)
            return _enter(chunk, source, pages)

        for chunk in pool.map(_tasks(source, first, count, chunk_size), place):
            written.add(chunk)
            journal.add(chunk)
            if progress.due():
                done = len(written)
                rate = (done - first) / (time.perf_counter() - start)
                skipped = f", {len(written.skipped)} skipped" if written.skipped else ""
                left = duration((count - done) / rate)
                details = f"{rate:.0f} images/s, {readable_size(pages.size)}{skipped}, {left} left"
                progress.show("images", done, count, details)
    if not written.indices:
        index, reason = written.skipped[0]
        raise UserError(f"none of the {count} images can be stored; the first, {source.name(index)}, {reason}")


def _enter(chunk: EncodedChunk, source: Source, pages: PageFile) -> list[int]:
    """Where the samples of `chunk` go in the file."""
    return [pages.append(sample, int(source.labels[sample.index])) for sample in chunk.samples]


def _foresee(
    pool: WorkerPool,
    source: Source,
    first: int,
    count: int,
    config: WriteConfig,
    pages: PageFile,
    target: Path,
    progress: ProgressLine,
) -> int:
    """Say what size and time to expect, check free disk; the images per task."""
    estimated = estimate(pool, source, first, count, lambda chunk: _stop_at_failure(chunk, source, config))
    if not estimated.probes:
        return config.chunk_size or 1
    size = pages.size + estimated.bytes_per_image * (count - first) + config.page_size
    remaining = duration(seconds_for(count - first, estimated, len(pool)))
    progress.print(f"estimate: {readable_size(size)}, {remaining} (from {estimated.probes} images)")
    check_space(target, size, pages.size)
    by_time = min(_CHUNK_SECONDS * estimated.images_per_second, (count - first) / (4 * len(pool)), _MAX_CHUNK)
    return max(1, int(min(config.chunk_size or by_time, _CHUNK_BYTES / estimated.bytes_per_image)))


def _tasks(source: Source, first: int, count: int, chunk_size: int) -> Iterator[Task]:
    for start in range(first, count, chunk_size):
        indices = range(start, min(start + chunk_size, count))
        yield Task(indices, [source.place(index) for index in indices])


def _stop_at_failure(chunk: EncodedChunk, source: Source, config: WriteConfig) -> None:
    if config.on_error != "skip":
        for index, reason in chunk.failures:
            others = ""
            if "is a damaged JPEG" in reason:
                others = ", or store what can be decoded of damaged JPEGs with --cfg.on_error=keep"
            elif "million that are allowed" in reason:
                others = ", or raise --cfg.max_megapixels"
            raise UserError(
                f"{source.name(index)} in {config.data_dir} {reason}; repair or remove it, or leave such images out "
                f"with --cfg.on_error=skip{others}"
            )


def _origin(config: WriteConfig, source: Source) -> dict[str, Any]:
    while isinstance(source, Selection):
        source = source.origin
    if isinstance(source, IndexedSource):
        return {"dataset": source.kind, "num_images": len(source)}
    # A glob may hold "..": leave links alone.
    folder = os.path.abspath(config.data_dir)  # noqa: PTH100
    return {"dataset": config.dataset, "data_dir": folder, "num_images": len(source)}


def _check(beton: Path, source: Source, written: Written) -> None:
    """Read the tables back from the file."""
    if not np.array_equal(open_beton(beton).labels, written.labels(source)):
        raise UserError(f"{beton} does not read back as it was written; is the disk sound?")


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        sync_file(file)
