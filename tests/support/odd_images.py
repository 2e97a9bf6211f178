"""Image files that Pillow does not write: TIFFs of any tags, PNGs of any chunks, JPEGs of any segments."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

_SIZES = {1: 1, 3: 2, 4: 4}
_FORMATS = {1: "B", 3: "H", 4: "I"}
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES, ROWS, COUNTS = (
    256, 257, 258, 259, 262, 273, 277, 278, 279,
)  # fmt: skip
PLANAR, COLOUR_MAP, EXTRA_SAMPLES, ORIENTATION = 284, 320, 338, 274


def tiff(
    height: int, width: int, strips: Sequence[bytes], bits: Sequence[int], photometric: int, **tags: Sequence[int]
) -> bytes:
    """An uncompressed little-endian TIFF 6.0; `tags` are `planar`, `colour_map`, `extra_samples`, `orientation`."""
    names = {"planar": PLANAR, "colour_map": COLOUR_MAP, "extra_samples": EXTRA_SAMPLES, "orientation": ORIENTATION}
    starts = np.cumsum([8, *map(len, strips)])
    entries: dict[int, tuple[int, Sequence[int]]] = {
        WIDTH: (4, [width]),
        LENGTH: (4, [height]),
        BITS: (3, bits),
        COMPRESSION: (3, [1]),
        PHOTOMETRIC: (3, [photometric]),
        STRIPS: (4, starts[:-1].tolist()),
        SAMPLES: (3, [len(bits)]),
        ROWS: (4, [height]),
        COUNTS: (4, [len(strip) for strip in strips]),
        **{names[name]: (3, values) for name, values in tags.items()},
    }
    data = b"".join(strips)
    data += b"\0" * (len(data) % 2)
    position = 8 + len(data)
    ifd, beyond = struct.pack("<H", len(entries)), b""
    beyond_start = position + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", beyond_start + len(beyond))
            beyond += packed + b"\0" * (len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        ifd += struct.pack("<HHI", tag, kind, len(values)) + place
    return struct.pack("<2sHI", b"II", 42, position) + data + ifd + struct.pack("<I", 0) + beyond


def packed_12_bit(values: np.ndarray) -> bytes:
    """Rows of 12-bit samples (uint16 [H, W], W even), two in three bytes, the high bits first (TIFF 6.0)."""
    first, second = values[:, ::2].astype(np.uint32), values[:, 1::2].astype(np.uint32)
    both = (first << 12) | second
    return np.stack([both >> 16, both >> 8, both], -1).astype(np.uint8).tobytes()


def with_png_chunks(png: bytes, chunks: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]]) -> bytes:
    """`png` with `chunks` behind its header."""
    items = chunks.items() if isinstance(chunks, Mapping) else chunks
    new = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in items
    )
    return png[:33] + new + png[33:]


def with_jpeg_segments(jpeg: bytes, segments: Sequence[tuple[int, bytes]]) -> bytes:
    """`jpeg` with marker segments (marker's second byte, body) at its beginning."""
    new = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return jpeg[:2] + new + jpeg[2:]
