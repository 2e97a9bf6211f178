"""A .beton file of millions of tiny images with its sidecar, as the converter would leave them, written in seconds."""

import json
import zlib
from pathlib import Path

import numpy as np

from ffcv_train.data.format.beton import sidecar_path
from ffcv_train.data.format.layout import (
    ALLOCATION,
    FIELD_DESCRIPTION,
    FORMAT_VERSION,
    HEADER,
    IMAGE_TYPE_ID,
    INT_TYPE_ID,
    PAIR_MARK,
    SAMPLE,
    pair_digest,
)
from ffcv_train.data.format.pagefile import DEFAULT_PAGE_SIZE, tables_crc
from ffcv_train.data.kernels.modes import MODE_RAW

PIXEL_BYTES = 3
_MAX_LISTED_FILES = 2_000_000
_ROWS = 1 << 20


def write_tiny_set(path: Path, samples: int, classes: int, image_bytes: int = PIXEL_BYTES, turned: int = 0) -> None:
    """Write `samples` black images of one raw pixel, in turn of `classes` classes, and the sidecar.

    Each takes `image_bytes` of the file, at most a page, of which the pixel is the first three; what lies between is a
    hole where the file system has holes. With `turned` the rows of the allocation table begin with that one, as in
    files of FFCV, whose writers end in any order.
    """
    page_size = DEFAULT_PAGE_SIZE
    per_page = page_size // image_bytes
    fields = np.zeros(2, FIELD_DESCRIPTION)
    for row, (name, type_id) in zip(fields, ((b"image", IMAGE_TYPE_ID), (b"label", INT_TYPE_ID)), strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name, np.uint8)
    labels = np.arange(samples, dtype=np.int64) % classes
    names = [f"n{number:08d}" for number in range(classes)]
    crcs = np.full(samples, zlib.crc32(bytes(PIXEL_BYTES)), np.uint32)
    pair = pair_digest(labels, crcs, names)
    mark = PAIR_MARK + pair.encode()
    fields["arguments"][-1][: len(mark)] = np.frombuffer(mark, np.uint8)
    start = -(-(HEADER.itemsize + fields.nbytes + samples * SAMPLE.itemsize) // page_size) * page_size
    end = start + -(-samples // per_page) * page_size
    header = np.zeros(1, HEADER)
    for key, value in (("version", FORMAT_VERSION), ("num_fields", 2), ("page_size", page_size)):
        header[key] = value
    header["num_samples"], header["alloc_table_ptr"] = samples, end

    def places(rows: np.ndarray) -> np.ndarray:
        return start + rows // per_page * page_size + rows % per_page * image_bytes

    with path.open("wb") as file:
        file.write(header.tobytes() + fields.tobytes())
        for first in range(0, samples, _ROWS):
            rows = np.arange(first, min(first + _ROWS, samples))
            table = np.zeros(len(rows), SAMPLE)
            image = table["f0"]
            image["mode"], image["height"], image["width"], image["data_ptr"] = MODE_RAW, 1, 1, places(rows)
            table["f1"] = labels[rows]
            file.write(table.data)
        file.seek(end)
        for first in range(0, samples, _ROWS):
            rows = (np.arange(first, min(first + _ROWS, samples)) + turned) % samples
            regions = np.zeros(len(rows), ALLOCATION)
            regions["sample_id"], regions["ptr"], regions["size"] = rows, places(rows), PIXEL_BYTES
            file.write(regions.data)
    sidecar = {
        "format": 1,
        "num_samples": samples,
        "class_names": names,
        "named": True,
        "class_counts": np.bincount(labels, minlength=classes).tolist(),
        "checksums": {
            "algorithm": "crc32",
            "pair": pair,
            "tables": f"{tables_crc(path):08x}",
            "samples": f"{int(crcs[0]):08x}" * samples,
        },
    }
    if samples <= _MAX_LISTED_FILES:
        sidecar["files"] = [f"train/{names[label]}/{names[label]}_{i}.JPEG" for i, label in enumerate(labels.tolist())]
    sidecar_path(path).write_text(json.dumps(sidecar))
