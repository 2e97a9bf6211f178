"""ffcv-train write --verify: does every byte of a .beton file mean what its tables and its sidecar say?"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ffcv_train.data.format.beton import Beton, open_beton, sidecar_path
from ffcv_train.data.format.layout import pair_digest
from ffcv_train.data.format.pagefile import tables_crc
from ffcv_train.data.kernels.jpeg import frame_size, unsupported_kind
from ffcv_train.data.kernels.level import is_smaller, level_of, level_size
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.kernels.turbojpeg import decode_jpeg
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.resources import usable_cores

_MAX_SHOWN = 10
_CHUNK = 64


@dataclass(frozen=True)
class BadSample:
    """A sample that is not as it should be."""

    index: int
    problem: str


def verify(file: str | Path, progress: ProgressLine | None = None) -> None:
    """Check tables, sidecar and every image of a .beton file, images with the loader's own decoder.

    Prints the first bad samples and raises `UserError` if there is any, or if a table does not fit.
    """
    progress = progress or ProgressLine(plain_interval=10.0)
    # The tables' checksum comes last: what else is wrong with them says more.
    beton = open_beton(file, compare_checksum=False)
    checksums = _check_sidecar(beton)
    bad: list[BadSample] = []
    done = 0
    try:
        for problems, count in _check_samples(beton, checksums):
            for sample in problems:
                if len(bad) < _MAX_SHOWN:
                    progress.print(f"bad: {beton.describe(sample.index)} {sample.problem}")
                bad.append(sample)
            done += count
            progress.show("images", done, len(beton), f"{len(bad)} bad")
    except OSError as error:
        raise UserError(f"cannot read {beton.path}: {error.strerror}") from None
    finally:
        progress.close()
    if bad:
        more = f" (the first {_MAX_SHOWN} are listed above)" if len(bad) > _MAX_SHOWN else ""
        raise UserError(
            f"{len(bad)} of {len(beton)} samples of {beton.path} are bad{more}; copy the file again, or make it again"
        )
    what = "no sidecar to compare with" if beton.sidecar is None else "its sidecar agrees"
    without = "" if checksums is not None or beton.sidecar is None else ", which holds no checksums"
    progress.print(f"{beton.path}: all {len(beton)} samples are sound, {what}{without}")


def _check_sidecar(beton: Beton) -> np.ndarray | None:
    """The samples' CRC-32 (uint32 [N]) from the sidecar, if any; raises `UserError` where tables do not fit it."""
    if beton.sidecar is None:
        return None
    file, num_classes = sidecar_path(beton.path), beton.num_classes
    advice = "copy both files again, or make them again"
    outside = np.flatnonzero(beton.labels >= num_classes)
    if len(outside):
        label = beton.labels[outside[0]]
        raise UserError(f"{beton.describe(int(outside[0]))} has label {label}, but {file} names {num_classes} classes")
    counts = np.bincount(beton.labels, minlength=num_classes).tolist()
    if beton.sidecar.get("class_counts", counts) != counts:
        raise UserError(f"{file} counts other numbers of images per class than {beton.path} holds; {advice}")
    if len(beton.sidecar.get("files", beton.labels)) != len(beton):
        raise UserError(f"{file} lists another number of files than {beton.path} holds; {advice}")
    checksums = beton.sidecar.get("checksums")
    if checksums is None:
        return None
    try:
        samples = np.frombuffer(bytes.fromhex(checksums["samples"]), ">u4")
        tables = int(checksums["tables"], 16)
    except (ValueError, KeyError, TypeError):
        samples, tables = np.empty(0, ">u4"), -1
    if len(samples) != len(beton) or tables < 0:
        raise UserError(f"{file} holds damaged checksums; {advice}")
    if beton.pair and pair_digest(beton.labels, samples, beton.sidecar["class_names"]) != beton.pair:
        raise UserError(f"class names or checksums in {file} are no longer those that it was written with; {advice}")
    if tables != tables_crc(beton.path):
        raise UserError(f"the tables of {beton.path} differ from their checksum in {file}; {advice}")
    return samples


def _check_samples(beton: Beton, checksums: np.ndarray | None) -> Iterator[tuple[list[BadSample], int]]:
    """The bad samples of each chunk, and the chunk's length, in the order of the samples."""
    # In the order of the file, which is that of the samples in files of ours: disks like it.
    order = np.argsort(beton.ptrs, kind="stable")
    chunks = (order[first : first + _CHUNK] for first in range(0, len(order), _CHUNK))
    descriptor = os.open(beton.path, os.O_RDONLY)
    threads = usable_cores()
    try:
        with ThreadPoolExecutor(threads) as pool:
            while group := list(islice(chunks, 4 * threads)):
                for chunk, problems in zip(
                    group, pool.map(lambda c: _check_chunk(beton, descriptor, checksums, c), group), strict=True
                ):
                    yield problems, len(chunk)
    finally:
        os.close(descriptor)


def _check_chunk(beton: Beton, descriptor: int, checksums: np.ndarray | None, chunk: np.ndarray) -> list[BadSample]:
    bad = []
    for index in chunk.tolist():
        data = os.pread(descriptor, int(beton.sizes[index]), int(beton.ptrs[index]))
        problem = _problem(beton, index, data, None if checksums is None else int(checksums[index]))
        if problem:
            bad.append(BadSample(index, problem))
    return bad


def _problem(beton: Beton, index: int, data: bytes, checksum: int | None) -> str:
    """What is wrong with a sample's stored bytes, or ""."""
    height, width = int(beton.heights[index]), int(beton.widths[index])
    if beton.modes[index] == MODE_JPG:
        stored = np.frombuffer(data, np.uint8)
        frame = frame_size(stored)
        if frame == (0, 0):
            return "is not a JPEG"
        if frame != (height, width):
            return f"is a JPEG of {frame[1]} × {frame[0]} pixels, but the sample table says {width} × {height}"
        problem = _damage(stored, height, width) or _damage_of_level(beton, stored, height, width)
        if problem:
            return problem
    # Of raw pixels, whose length open_beton has compared, and of JPEGs that decode nevertheless, it is all there is.
    if checksum is not None and zlib.crc32(data) != checksum:
        return "differs from its checksum in the sidecar"
    return ""


def _damage(stored: np.ndarray, height: int, width: int) -> str:
    """What keeps a JPEG with the right header from being decoded, or ""."""
    try:
        pixels = np.empty(height * width * 3, np.uint8)
    except MemoryError:
        return f"has {width} × {height} pixels, more than there is memory for"
    if not decode_jpeg(stored.ctypes.data, len(stored), height, width, pixels):
        return ""
    kind = unsupported_kind(stored.tobytes())
    return f"is a JPEG of an unsupported kind ({kind})" if kind else "is a damaged JPEG"


def _damage_of_level(beton: Beton, stored: np.ndarray, height: int, width: int) -> str:
    """What is wrong with the smaller JPEG behind the image, or its absence, or ""."""
    level = level_of(stored)
    share = ((beton.sidecar or {}).get("settings") or {}).get("level")
    expected = level_size(height, width, share) if isinstance(share, float) and share > 0 else None
    frame = frame_size(level) if len(level) else None
    if expected is not None and frame != expected:
        return f"has no smaller level of {expected[1]} × {expected[0]} pixels, which the sidecar speaks of"
    if frame is None:
        return ""
    if not is_smaller(*frame, height, width):
        return "has a smaller level that is not a JPEG of its image"
    return "has a damaged smaller level" if _damage(level, *frame) else ""
