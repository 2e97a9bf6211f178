"""From images to the bytes that a .beton file stores: read, decode, shrink and encode a task's.

Worker processes start by importing this, so nothing heavy is imported here.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ffcv_train.data.format.layout import MAX_SAMPLE_BYTES, EncodedSample
from ffcv_train.data.kernels.modes import MODE_JPG, MODE_RAW
from ffcv_train.data.sources.archives import Blob, ZipBlob
from ffcv_train.data.sources.image_file import (
    MAX_SIDE,
    ImageError,
    _is_bgr,
    contiguous,
    decode,
)


@dataclass(frozen=True)
class Encoding:
    """How images are stored; the options of the same names. `max_resolution` 0 keeps the size, `level` 0 adds none."""

    write_mode: str
    max_resolution: int = 0
    jpeg_quality: int = 90
    compress_probability: float = 0.5
    smart_threshold: int = 1 << 16
    seed: int = 0
    tiles: bool = True
    level: float = 0.0
    optimize: bool = False
    on_error: str = "stop"
    max_megapixels: int = 179


@dataclass(frozen=True)
class Task:
    """Samples to encode, and where each is to be read."""

    indices: Sequence[int]
    places: Sequence[Blob | ZipBlob | np.ndarray]


@dataclass
class EncodedChunk:
    """What became of a task: rows of `samples`; `failures`, and `damaged` ones of the samples, as (index, reason)."""

    samples: list[EncodedSample] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    stamp: int | None = None
    """`stamp_of` the places of the task, before they were read"""


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
        jpeg = encode_jpeg(image, encoding.jpeg_quality, encoding.tiles, encoding.optimize)
        if encoding.level:
            jpeg = _add_level(jpeg, image, encoding)
        return jpeg, MODE_JPG, height, width
    if image.nbytes > MAX_SAMPLE_BYTES:
        raise ImageError(f"takes {image.nbytes} bytes as pixels, more than a page can hold; set --cfg.max_resolution")
    return contiguous(image).reshape(-1).data, MODE_RAW, height, width


def encode_task(encoding: Encoding, task: Task) -> tuple[EncodedChunk, list[bytes | memoryview]]:
    """Encode the samples of a task: their rows, and the stored bytes of each.

    An image that cannot be stored becomes a failure, and the last one of the task if asked for.
    """
    chunk, contents = EncodedChunk(stamp=stamp_of(task.places)), []
    start = time.perf_counter()
    for index, place in zip(task.indices, task.places, strict=True):
        try:
            image, damage = (place, "") if isinstance(place, np.ndarray) else _image(place, encoding)
            data, mode, height, width = encode_image(encoding, index, image)
        except ImageError as error:
            chunk.failures.append((index, str(error)))
            if encoding.on_error != "skip":
                break
            continue
        if damage:
            chunk.damaged.append((index, damage))
        contents.append(data)
        chunk.samples.append(EncodedSample(index, mode, height, width, len(data), zlib.crc32(data)))
    chunk.seconds = time.perf_counter() - start
    return chunk, contents


def _image(place: Blob | ZipBlob, encoding: Encoding) -> tuple[np.ndarray, str]:
    """The pixels, and the damage that is to be kept."""
    image = decode(_read(place), max_pixels=encoding.max_megapixels * 1_000_000)
    if image.damage and encoding.on_error != "keep":
        raise ImageError(image.reason)
    return image.pixels, image.damage


def stamp_of(places: Iterable[Blob | ZipBlob | np.ndarray]) -> int | None:
    """A CRC-32 of size and time of change of the files that hold `places`; None where one is no file."""
    stamps = []
    for place in places:
        if isinstance(place, np.ndarray):
            return None
        try:
            status = os.stat(place.path)  # noqa: PTH116  # a Path takes longer than the call
        except OSError:
            stamps.append("")
        else:
            stamps.append(f"{status.st_size}:{status.st_mtime_ns}")
    return zlib.crc32(" ".join(stamps).encode())


def _read(place: Blob | ZipBlob) -> bytes:
    try:
        return place.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """`image` (uint8 [H, W, 3]) so that its longer side is at most `max_side` (0: as it is); never enlarged.

    Each new pixel is the mean over the area that it covers (as OpenCV's INTER_AREA and so FFCV), which is antialiased.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    if not max_side or longer <= max_side:
        return image
    # Imported here: numba takes a third of a second, of which workers that shrink nothing have no need.
    from ffcv_train.data.kernels.shrink import shrink_area

    size = max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))
    if _is_bgr(image):
        return shrink_area(image[:, :, ::-1], *size)[:, :, ::-1]
    return shrink_area(image, *size)


def _add_level(jpeg: bytes, image: np.ndarray, encoding: Encoding) -> bytes:
    from ffcv_train.data.kernels.level import level_size, with_level
    from ffcv_train.data.kernels.resample import resize

    # Bicubic keeps what the loader's own filter is to see: an area's mean would blur a crop twice.
    smaller = resize(image, *level_size(image.shape[0], image.shape[1], encoding.level), "bicubic")
    return with_level(jpeg, encode_jpeg(smaller, encoding.jpeg_quality, encoding.tiles, encoding.optimize))


def encode_jpeg(image: np.ndarray, quality: int, tiles: bool = True, optimize: bool = False) -> bytes:
    """`image` (uint8 [H, W, 3], RGB) as a baseline JPEG with 4:2:0 chroma, as FFCV encodes.

    With `tiles`, restart markers cut it into a grid of tiles of `restart_interval`, of which a loader decodes only
    those that a crop needs; with `optimize`, Huffman tables are made for the image, which takes a second pass. The
    pixels are the same.
    """
    interval = restart_interval(image.shape[1]) if tiles else 0
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    options += [cv2.IMWRITE_JPEG_OPTIMIZE, int(optimize)]
    bgr = image[:, :, ::-1] if _is_bgr(image) else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        encoded, data = cv2.imencode(".jpg", bgr, options)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = image.shape[:2]
        raise ImageError(f"cannot be stored as JPEG at {width} × {height} pixels; set --cfg.max_resolution")
    return data.tobytes()


def restart_interval(width: int) -> int:
    """MCUs (16 × 16 pixels) between restart markers: the divisor of the row nearest to 3 (of two, the smaller).

    Narrower tiles cost more bytes and time than the pixels that they save; wider ones save less.
    """
    per_row = -(-width // 16)
    return min((d for d in range(1, 9) if per_row % d == 0), key=lambda d: abs(d - 3))
