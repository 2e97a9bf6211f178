"""Sound .beton files, and what can go wrong with their tables, their pixels and their sidecars."""

import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ffcv_train.data.convert.encoding import Encoding, encode_image
from ffcv_train.data.format.beton import sidecar_path
from ffcv_train.data.format.layout import ALLOCATION, FIELD_DESCRIPTION, HEADER, IMAGE, SAMPLE, EncodedSample
from ffcv_train.data.format.pagefile import PageFile, tables_crc
from fuzz.photographs import photographs

_PAGE_SIZE = 1 << 15
_NUM_CLASSES = 4
_SEEDS = {
    "tiles": (Encoding("jpg"), 12, (40, 160)),
    "whole": (Encoding("jpg", tiles=False), 12, (1, 90)),
    "raw": (Encoding("raw"), 12, (1, 40)),
    "mixed": (Encoding("proportion"), 20, (20, 60)),
}
_NUMBERS = (0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_HEADER_FIELDS = ("version", "num_fields", "page_size", "num_samples", "alloc_table_ptr")
_SIDECAR_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3.5, 10**30, float("nan"), "", "x", [], [1], ["a"], [None] * 5, {}, {"a": [1]}, [["a"]],
)  # fmt: skip


def write_seeds(folder: Path) -> None:
    """Small .beton files of photographs, with sidecars, as write_dataset.py makes them but for smaller pages."""
    rng = np.random.default_rng(0)
    for name, (encoding, count, (low, high)) in _SEEDS.items():
        path = folder / f"{name}.beton"
        file, contents = PageFile(path, count, _PAGE_SIZE), []
        for index in range(count):
            photograph = photographs()[index % 2]
            height, width = rng.integers(low, high + 1, 2)
            top, left = rng.integers(0, photograph.shape[0] - height), rng.integers(0, photograph.shape[1] - width)
            pixels = photograph[top : top + height, left : left + width]
            data, mode, *size = encode_image(encoding, index, pixels)
            sample = EncodedSample(index, mode, size[0], size[1], len(data), zlib.crc32(data))
            contents.append((sample, file.append(sample, index % _NUM_CLASSES), data))
        file.finish()
        with path.open("r+b") as pages:
            for _, position, data in contents:
                pages.seek(position)
                pages.write(data)
        checksums = "".join(f"{sample.crc:08x}" for sample, _, _ in contents)
        sidecar = {
            "num_samples": count,
            "class_names": [f"class{i}" for i in range(_NUM_CLASSES)],
            "class_counts": [count // _NUM_CLASSES] * _NUM_CLASSES,
            "files": [f"photo{i}.jpg" for i in range(count)],
            "checksums": {"algorithm": "crc32", "tables": f"{tables_crc(path):08x}", "samples": checksums},
        }
        sidecar_path(path).write_text(json.dumps(sidecar))


@dataclass(frozen=True)
class Layout:
    """Where the tables of a sound file begin, in bytes."""

    num_samples: int
    fields: int
    samples: int
    data: int
    regions: int

    @classmethod
    def of(cls, content: bytes) -> "Layout":
        """The layout of a sound file."""
        header = np.frombuffer(content, HEADER, 1)[0]
        count, fields = int(header["num_samples"]), HEADER.itemsize
        samples = fields + int(header["num_fields"]) * FIELD_DESCRIPTION.itemsize
        data = samples + count * SAMPLE.itemsize
        return cls(count, fields, samples, data, int(header["alloc_table_ptr"]))


@dataclass
class Damaged:
    """A file under damage: its bytes, its sidecar's (None: it has none), and what was done."""

    content: bytearray
    sidecar: bytes | None
    layout: Layout
    mutations: list[str] = field(default_factory=list)


def _put(file: Damaged, at: int, dtype: np.dtype, value: int) -> None:
    """Write a number, of which the low bits count."""
    file.content[at : at + dtype.itemsize] = (value % (1 << 8 * dtype.itemsize)).to_bytes(dtype.itemsize, "little")


def _get(file: Damaged, at: int, dtype: np.dtype) -> int:
    return int.from_bytes(file.content[at : at + dtype.itemsize], "little")


def _damage_number(file: Damaged, at: int, dtype: np.dtype, rng: Random) -> None:
    old = _get(file, at, dtype)
    near = (old + 1, old - 1, old * 2, old // 2, old ^ (1 << rng.randrange(8 * dtype.itemsize)), len(file.content))
    new = rng.choice(near) if rng.random() < 0.5 else rng.choice(_NUMBERS)
    _put(file, at, dtype, new if rng.random() < 0.9 else rng.getrandbits(64))


def _header(file: Damaged, rng: Random) -> None:
    for name in rng.sample(_HEADER_FIELDS, rng.choice((1, 1, 1, 2))):
        dtype, at = HEADER.fields[name][:2]  # type: ignore[index]
        _damage_number(file, at, dtype, rng)


def _page_size(file: Damaged, rng: Random) -> None:
    dtype, at = HEADER.fields["page_size"][:2]  # type: ignore[index]
    _put(file, at, dtype, rng.choice((0, 3, 1 << rng.randrange(32), 1 << rng.randrange(12, 32))))


def _fields(file: Damaged, rng: Random) -> None:
    start = file.layout.fields + rng.randrange(2) * FIELD_DESCRIPTION.itemsize
    for _ in range(rng.randint(1, 3)):
        file.content[start + rng.choice((0, rng.randrange(17), rng.randrange(1041)))] = rng.randrange(256)


def _row(file: Damaged, rng: Random) -> int:
    return file.layout.samples + rng.randrange(file.layout.num_samples) * SAMPLE.itemsize


def _row_number(file: Damaged, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(("mode", "width", "height", "data_ptr"))
        dtype, at = IMAGE.fields[name][:2]  # type: ignore[index]
        _damage_number(file, _row(file, rng) + at, dtype, rng)


def _label(file: Damaged, rng: Random) -> None:
    dtype, at = SAMPLE.fields["f1"][:2]  # type: ignore[index]
    _damage_number(file, _row(file, rng) + at, dtype, rng)


def _rows_exchanged(file: Damaged, rng: Random) -> None:
    """Two whole rows, or one number of each."""
    a, b = _row(file, rng), _row(file, rng)
    name = rng.choice(("row", "data_ptr", "size"))
    offset, length = 0, SAMPLE.itemsize
    if name == "data_ptr":
        dtype, offset = IMAGE.fields[name][:2]  # type: ignore[index]
        length = dtype.itemsize
    elif name == "size":
        offset, length = IMAGE.fields["width"][1], 4  # type: ignore[index]
    a, b = a + offset, b + offset
    first, second = file.content[a : a + length], file.content[b : b + length]
    file.content[a : a + length], file.content[b : b + length] = second, first


def _sides_exchanged(file: Damaged, rng: Random) -> None:
    at = _row(file, rng) + IMAGE.fields["width"][1]  # type: ignore[index]
    file.content[at : at + 4] = file.content[at + 2 : at + 4] + file.content[at : at + 2]


def _huge_sides(file: Damaged, rng: Random) -> None:
    """A row of 65535 × 65535 pixels, and often the same in the JPEG's frame header."""
    row = _row(file, rng)
    height, width = rng.choice(((65535, 65535), (65535, 3000), (20000, 20000), (65535, 1), (4000, 4000)))
    sides = IMAGE.fields
    at = _get(file, row + sides["data_ptr"][1], np.dtype("<u8"))  # type: ignore[index]
    _put(file, row + sides["height"][1], np.dtype("<u2"), height)  # type: ignore[index]
    _put(file, row + sides["width"][1], np.dtype("<u2"), width)  # type: ignore[index]
    frame = file.content.find(b"\xff\xc0", at, at + 1000)
    if frame >= 0 and rng.random() < 0.8:
        file.content[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")


def _region(file: Damaged, rng: Random) -> int:
    return file.layout.regions + rng.randrange(file.layout.num_samples) * ALLOCATION.itemsize


def _region_number(file: Damaged, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 4))):
        dtype, at = ALLOCATION.fields[rng.choice(("sample_id", "ptr", "size", "size"))][:2]  # type: ignore[index]
        place = _region(file, rng) + at
        if place + 8 <= len(file.content):
            _damage_number(file, place, dtype, rng)


def _pointer_pair(file: Damaged, rng: Random) -> None:
    """A pointer moved alike in both tables, with a size that still fits or not."""
    number = rng.randrange(file.layout.num_samples)
    row = file.layout.samples + number * SAMPLE.itemsize + IMAGE.fields["data_ptr"][1]  # type: ignore[index]
    region = file.layout.regions + number * ALLOCATION.itemsize
    eight = np.dtype("<u8")
    old = _get(file, row, eight)
    new = rng.choice((old + rng.randint(-40, 40), rng.randrange(len(file.content)), 0, 2**62, len(file.content) - 1))
    _put(file, row, eight, new)
    _put(file, region + 8, eight, new)
    if rng.random() < 0.5:
        _damage_number(file, region + 16, eight, rng)


def _pixels(file: Damaged, rng: Random) -> None:
    """Bytes within the data region, of which the greater part holds samples."""
    for _ in range(rng.choice((1, 4, 40))):
        region = _region(file, rng)
        ptr, size = _get(file, region + 8, np.dtype("<u8")), _get(file, region + 16, np.dtype("<u8"))
        at = ptr + rng.randrange(max(1, size))
        if at < len(file.content):
            file.content[at] = rng.choice((0, 0xFF, 0xD9, rng.randrange(256)))


def _anywhere(file: Damaged, rng: Random) -> None:
    for _ in range(rng.randint(1, 8)):
        size = len(file.content)
        start, end = rng.choice(((0, file.layout.data), (file.layout.regions, size), (0, size)))
        if start < size:
            file.content[rng.randrange(start, min(end, size))] = rng.randrange(256)


def _truncated(file: Damaged, rng: Random) -> None:
    layout = file.layout
    ends = (0, 1, 10, 24, layout.fields, layout.samples, layout.data, layout.regions, layout.regions + 24)
    size = len(file.content)
    end = rng.choice((rng.choice(ends), rng.randrange(size), size - 1, size - 24, size - rng.randint(1, 99)))
    del file.content[end:]


def _extended(file: Damaged, rng: Random) -> None:
    file.content += rng.choice((b"\0" * 24, b"\0" * 240, rng.randbytes(rng.randint(1, 99)), bytes(file.content[:5000])))


def _shifted(file: Damaged, rng: Random) -> None:
    at = rng.randrange(len(file.content))
    if rng.random() < 0.5:
        del file.content[at : at + rng.choice((1, 4, 24, 4096))]
    else:
        file.content[at:at] = rng.randbytes(rng.choice((1, 4, 24, 4096)))


def _zeroed(file: Damaged, rng: Random) -> None:
    """A block that was never written to the disk."""
    at = rng.randrange(0, len(file.content), 512)
    length = min(rng.choice((512, 4096, 16384)), len(file.content) - at)
    file.content[at : at + length] = bytes(length)


def _sidecar_bytes(file: Damaged, rng: Random) -> None:
    text = bytearray(file.sidecar or b"{}")
    what = rng.randrange(5)
    if what == 0:
        del text[rng.randrange(len(text) + 1) :]
    elif what == 1:
        for _ in range(rng.randint(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(256)
    elif what == 2:
        text = bytearray(rng.choice((b"", b"[]", b"null", b"7", b'"x"', b"NaN", b"\xff\xfe", b"{}", b"[" * 100_000)))
    elif what == 3:
        text += b"}"
    else:
        text = bytearray(b'{"num_samples": ' + b"9" * 5000 + b"}")
    file.sidecar = bytes(text)


def _sidecar_value(file: Damaged, rng: Random) -> None:
    """A key with a value of another type or length, or without its value."""
    try:
        sidecar = json.loads(file.sidecar or b"{}")
    except (ValueError, RecursionError):
        return
    if not isinstance(sidecar, dict):
        return
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(("num_samples", "class_names", "class_counts", "files", "checksums", "tables", "samples"))
        holder: Any = sidecar
        if key in ("tables", "samples"):
            holder = sidecar.get("checksums")
        if not isinstance(holder, dict):
            continue
        old = holder.get(key)
        if rng.random() < 0.2:
            holder.pop(key, None)
        elif isinstance(old, (list, str)) and rng.random() < 0.3:
            holder[key] = rng.choice((old[:-1], old * 2, old[::-1]))
        else:
            holder[key] = copy.deepcopy(rng.choice(_SIDECAR_VALUES))
    file.sidecar = json.dumps(sidecar).encode()


Mutation = Callable[[Damaged, Random], None]
MUTATIONS: dict[str, tuple[int, Mutation]] = {
    "header": (3, _header),
    "page size": (1, _page_size),
    "field descriptions": (2, _fields),
    "row": (4, _row_number),
    "label": (2, _label),
    "rows exchanged": (2, _rows_exchanged),
    "sides exchanged": (1, _sides_exchanged),
    "huge sides": (3, _huge_sides),
    "allocation table": (4, _region_number),
    "pointer in both tables": (3, _pointer_pair),
    "pixels": (3, _pixels),
    "bytes": (2, _anywhere),
    "truncated": (2, _truncated),
    "extended": (1, _extended),
    "shifted": (1, _shifted),
    "zeroed": (1, _zeroed),
    "sidecar's bytes": (2, _sidecar_bytes),
    "sidecar's values": (4, _sidecar_value),
}
"""Each with its weight."""
_NAMES = tuple(MUTATIONS)
_WEIGHTS = tuple(weight for weight, _ in MUTATIONS.values())


def mutate(content: bytes, sidecar: bytes | None, layout: Layout, rng: Random) -> Damaged:
    """A damaged copy of a sound file."""
    file = Damaged(bytearray(content), sidecar, layout)
    for name in rng.choices(_NAMES, _WEIGHTS, k=rng.choice((1, 1, 1, 2, 3))):
        # What removes bytes may leave nothing for the next to work on.
        if len(file.content) < layout.regions:
            break
        MUTATIONS[name][1](file, rng)
        file.mutations.append(name)
    return file
