"""From images to the bytes that a .beton file stores: read, decode, shrink and encode a task's.

Worker processes start by importing this, so nothing heavy is imported here.
"""

import hashlib
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ffcv_train.data.archives import Blob, ZipBlob
from ffcv_train.data.images import MAX_SIDE, ImageError, contiguous, decode_rgb, encode_jpeg, shrink

MODE_JPG = 0
MODE_RAW = 1
MAX_SAMPLE_BYTES = 1 << 31
"""The largest page; the header holds its size as a 32-bit number, and it is a power of two."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored; the options of the same names. `max_resolution` 0 keeps the size."""

    write_mode: str
    max_resolution: int = 0
    jpeg_quality: int = 90
    compress_probability: float = 0.5
    smart_threshold: int = 1 << 16
    seed: int = 0
    tiles: bool = True
    stop_at_error: bool = True


@dataclass(frozen=True)
class Task:
    """Samples to encode, and where each is to be read."""

    indices: Sequence[int]
    places: Sequence[Blob | ZipBlob | np.ndarray]


@dataclass(frozen=True)
class EncodedSample:
    """A row of the sample table, except for label and position; `crc` is the CRC-32 of the stored bytes."""

    index: int
    mode: int
    height: int
    width: int
    size: int
    crc: int


@dataclass
class EncodedChunk:
    """What became of a task: rows of `samples`, and `failures` as (index, reason)."""

    samples: list[EncodedSample] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


def stores_jpeg(encoding: Encoding, index: int, raw_size: int) -> bool:
    """Whether sample `index`, of `raw_size` bytes as pixels, is stored as JPEG.

    `proportion` hashes (seed, index), so that the choice does not depend on workers or on other samples.
    """
    if encoding.write_mode == "smart":
        return raw_size > encoding.smart_threshold
    if encoding.write_mode == "proportion":
        digest = hashlib.blake2b(f"{encoding.seed}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < encoding.compress_probability * 2**64
    return encoding.write_mode == "jpg"


def encode_image(encoding: Encoding, index: int, image: np.ndarray) -> tuple[bytes | memoryview, int, int, int]:
    """(stored bytes, mode, height, width) of an image, uint8 [H, W, 3], RGB; raises `ImageError`."""
    image = shrink(image, encoding.max_resolution)
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"has {width} × {height} pixels, but a side is at most {MAX_SIDE}; set --cfg.max_resolution")
    if stores_jpeg(encoding, index, image.nbytes):
        return encode_jpeg(image, encoding.jpeg_quality, encoding.tiles), MODE_JPG, height, width
    if image.nbytes > MAX_SAMPLE_BYTES:
        raise ImageError(f"takes {image.nbytes} bytes as pixels, more than a page can hold; set --cfg.max_resolution")
    return contiguous(image).reshape(-1).data, MODE_RAW, height, width


def encode_task(encoding: Encoding, task: Task) -> tuple[EncodedChunk, list[bytes | memoryview]]:
    """Encode the samples of a task: their rows, and the stored bytes of each.

    An image that cannot be stored becomes a failure, and the last one of the task if asked for.
    """
    chunk, contents = EncodedChunk(), []
    start = time.perf_counter()
    for index, place in zip(task.indices, task.places, strict=True):
        try:
            image = place if isinstance(place, np.ndarray) else decode_rgb(_read(place))
            data, mode, height, width = encode_image(encoding, index, image)
        except ImageError as error:
            chunk.failures.append((index, str(error)))
            if encoding.stop_at_error:
                break
            continue
        contents.append(data)
        chunk.samples.append(EncodedSample(index, mode, height, width, len(data), zlib.crc32(data)))
    chunk.seconds = time.perf_counter() - start
    return chunk, contents


def _read(place: Blob | ZipBlob) -> bytes:
    try:
        return place.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
