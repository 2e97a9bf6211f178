"""What a worker process of write_dataset.py does: read, decode, shrink and encode a chunk of images.

Worker processes start by importing this, so nothing heavy is imported here.
"""

import contextlib
import hashlib
import time
import traceback
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import cv2
import numpy as np

from ffcv_train.data.archives import Blob, ZipBlob
from ffcv_train.data.images import MAX_SIDE, ImageError, decode_rgb, encode_jpeg, shrink

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
    """The stored bytes of `samples`, one after the other, in `data`; `failures` are (index, reason)."""

    samples: list[EncodedSample] = field(default_factory=list)
    data: bytes = b""
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


def encode_image(encoding: Encoding, index: int, image: np.ndarray) -> tuple[bytes, int, int, int]:
    """(stored bytes, mode, height, width) of an image, uint8 [H, W, 3], RGB; raises `ImageError`."""
    image = np.ascontiguousarray(shrink(image, encoding.max_resolution))
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"has {width} × {height} pixels, but a side is at most {MAX_SIDE}; set --cfg.max_resolution")
    if stores_jpeg(encoding, index, image.nbytes):
        return encode_jpeg(image, encoding.jpeg_quality, encoding.tiles), MODE_JPG, height, width
    if image.nbytes > MAX_SAMPLE_BYTES:
        raise ImageError(f"takes {image.nbytes} bytes as pixels, more than a page can hold; set --cfg.max_resolution")
    return image.tobytes(), MODE_RAW, height, width


def encode_task(encoding: Encoding, task: Task) -> EncodedChunk:
    """Encode the samples of a task; an image that cannot be stored becomes a failure, and the last one if asked for."""
    chunk = EncodedChunk()
    start = time.perf_counter()
    parts = []
    for index, place in zip(task.indices, task.places, strict=True):
        try:
            image = place if isinstance(place, np.ndarray) else decode_rgb(_read(place))
            data, mode, height, width = encode_image(encoding, index, image)
        except ImageError as error:
            chunk.failures.append((index, str(error)))
            if encoding.stop_at_error:
                break
            continue
        parts.append(data)
        chunk.samples.append(EncodedSample(index, mode, height, width, len(data), zlib.crc32(data)))
    chunk.data = b"".join(parts)
    chunk.seconds = time.perf_counter() - start
    return chunk


def work(connection: Connection, encoding: Encoding) -> None:
    """A worker's life: tasks come in, chunks go out, until the connection closes, be it that the parent has died.

    A chunk that cannot be made at all is answered by the text of the traceback.
    """
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # Pillow's, about large images and odd palettes
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            answer: EncodedChunk | str
            try:
                answer = encode_task(encoding, task)
            except Exception:
                answer = traceback.format_exc()
            connection.send(answer)


def _read(place: Blob | ZipBlob) -> bytes:
    try:
        return place.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
