"""The .beton format's types, and a sample as it is stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SAMPLE_BYTES = 1 << 31
"""The largest page; the header holds its size as a 32-bit number, and it is a power of two."""


@dataclass(frozen=True)
class EncodedSample:
    """A row of the sample table, except for label and position; `crc` is the CRC-32 of the stored bytes."""

    index: int
    mode: int
    height: int
    width: int
    size: int
    crc: int


FORMAT_VERSION = 2
IMAGE_TYPE_ID = 2
INT_TYPE_ID = 1

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DESCRIPTION = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
"""A row of the sample table of a file with the fields image and label."""
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

PAIR_MARK = b"ffcv_train pair "
"""Begins the arguments of the field `label`, which FFCV leaves empty and reads over, in a file that has a sidecar."""


def pair_digest(labels: np.ndarray, checksums: np.ndarray, class_names: Sequence[str]) -> str:
    """The SHA-256 that a .beton file and its sidecar both hold: of labels, of samples' CRC-32, and of class names.

    Two files that were written apart hold two. `labels` are whole numbers [N], `checksums` uint32 [N].
    """
    digest = hashlib.sha256(np.asarray(labels, "<i8").tobytes())
    digest.update(np.asarray(checksums, "<u4").tobytes())
    digest.update("\0".join(class_names).encode(errors="surrogateescape"))
    return digest.hexdigest()
