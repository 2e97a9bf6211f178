"""Opening a .beton file: every table and pointer is checked before anything else touches the file."""

import dataclasses
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.data.format.layout import (
    ALLOCATION,
    FIELD_DESCRIPTION,
    FORMAT_VERSION,
    HEADER,
    IMAGE_TYPE_ID,
    INT_TYPE_ID,
    PAIR_MARK,
    SAMPLE,
)
from ffcv_train.data.format.sidecar import Sidecar, open_sidecar
from ffcv_train.data.kernels.modes import MODE_RAW
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError

_FIELD_NAMES = ("image", "label")
_MAX_PIXELS_PER_BYTE = 1024
"""Of a JPEG: Huffman codes take at least a bit per block of 8 × 8 samples, and the components together have more than
half as many blocks as the image has squares of that size."""
_ROWS = 1 << 16
"""Of a table that are looked at together: what is computed on the way stays small beside the table"""


@dataclass(frozen=True)
class Extent:
    """The most that a sample of a set takes, which decides what a thread needs."""

    image_bytes: int
    """Of the pixels of a JPEG"""
    stored_bytes: int
    """Of a JPEG as it is stored"""
    side: int
    """In pixels"""


@dataclass(frozen=True)
class Beton:
    """The checked tables of a .beton file with fields `image` and `label`, one entry per sample.

    `labels` int64; `modes` uint8 (0 JPEG, 1 raw RGB); `heights`, `widths` uint16 in pixels (their product is `pixels`);
    `ptrs` int64 and `sizes` uint32 in bytes, from the start of the file. `class_names` stand in label order; None where
    nothing names the classes, as without a sidecar.

    These are 25 bytes a sample, which every rank holds for itself. Mapped from the file they would be shared, but a
    file that is cut off would end the process by SIGBUS, and storage that hangs would hang whoever asks for a label.
    """

    path: Path
    page_size: int
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    modes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    ptrs: np.ndarray
    sizes: np.ndarray
    sidecar: Mapping[str, Any] | None
    file_size: int
    extent: Extent
    """Of these samples, or of more: threads take memory by it, and the decoder writes there"""
    pair: str = ""
    """The digest that names the sidecar that belongs to the file; "" where the file names none"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """The number of classes that are named, or that the sidecar counts; else 0."""
        return len(self.class_names or (self.sidecar or {}).get("class_names", ()))

    def pixels(self, index: Any = slice(None)) -> np.ndarray:
        """Height × width of the samples `index`, int64."""
        return self.heights[index].astype(np.int64) * self.widths[index]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about what was found: said when the file was written."""
        return ()

    @property
    def how_to_list(self) -> str:
        """How a list of class names is given to it, in words."""
        return f"write {self.path.name} anew with --cfg.classes=FILE"

    @cached_property
    def files(self) -> Sequence[str]:
        """The file that each sample was made from; empty where the sidecar does not list them.

        Read when it is first asked for. Raises `UserError` where the sidecar was replaced since, or is damaged there.
        """
        files = (self.sidecar or {}).get("files") or ()
        if not all(isinstance(file, str) for file in files):
            raise UserError(
                f"{sidecar_path(self.path)} is damaged: not all of its files are names; copy it and {self.path.name} "
                "again, or make them again"
            )
        return files

    def digest(self) -> str:
        """A SHA-256 of labels, sizes and places of all samples, and of their checksums where the sidecar has them.

        The same for a copy anywhere, another for a file that was made anew from other images or options. Raises
        `UserError` where the sidecar was replaced since it was opened.
        """
        digest = hashlib.sha256()
        for table in (self.labels, self.modes, self.heights, self.widths, self.ptrs, self.sizes):
            # As 64-bit numbers, whatever they are held as: digests are compared with those of older checkpoints.
            dtype = np.uint8 if table is self.modes else np.int64
            for part in _parts(len(table)):
                digest.update(np.ascontiguousarray(table[part], dtype).data)
        checksums = (self.sidecar or {}).get("checksums")
        if isinstance(checksums, Mapping):
            digest.update(str(checksums.get("samples")).encode())
        return digest.hexdigest()

    def describe(self, index: int) -> str:
        """Sample `index` in words, with the file that it was made from where the sidecar knows it."""
        try:
            files = self.files
        except UserError:
            files = ()
        origin = f" ({files[index]})" if index < len(files) else ""
        return f"sample {index}{origin} at byte {self.ptrs[index]} of {self.path}"


def sidecar_path(path: Path) -> Path:
    """Where the description of a .beton file lies."""
    return path.with_name(path.name + ".json")


def is_beton(path: str | Path) -> bool:
    """Whether a file begins as .beton files do, whatever its name: FFCV's own are often called .ffcv."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(HEADER.itemsize)
    except OSError:
        return False
    return len(start) == HEADER.itemsize and _header_fits(np.frombuffer(start, HEADER)[0])


def _header_fits(header: Any) -> bool:
    version, num_fields, page_size = int(header["version"]), int(header["num_fields"]), int(header["page_size"])
    return version == FORMAT_VERSION and 1 <= num_fields <= 64 and page_size >= 1 and not page_size & (page_size - 1)


def open_beton(path: str | Path, *, compare_checksum: bool = True) -> Beton:
    """Read and check header, field descriptions, sample table, allocation table and sidecar of a .beton file.

    The sidecar must be the one that was written with the file, where the file says that there is one. With
    `compare_checksum` the tables must also have the checksum that the sidecar holds, if it holds one. Raises
    `UserError` naming what is wrong and where; the images themselves are not decoded.
    """
    path = Path(path)
    content = _mapped(path)
    header = _checked_header(content, path)
    num_samples, offset = int(header["num_samples"]), HEADER.itemsize
    fields = _table(content, path, "field table", FIELD_DESCRIPTION, offset, int(header["num_fields"]))
    _check_fields(fields, path)
    offset += fields.nbytes
    samples = _table(content, path, "sample table", SAMPLE, offset, num_samples)
    data_start = offset + samples.nbytes
    table_start = int(header["alloc_table_ptr"])
    if not data_start <= table_start <= len(content) or (len(content) - table_start) % ALLOCATION.itemsize:
        raise _truncated(path, "allocation table", table_start, len(content))
    num_regions = (len(content) - table_start) // ALLOCATION.itemsize
    regions = _table(content, path, "allocation table", ALLOCATION, table_start, num_regions)

    sizes = _sizes(path, samples["f0"]["data_ptr"], regions)
    pair = _pair(bytes(fields["arguments"][-1]))
    sidecar = _read_sidecar(path, num_samples, pair)
    beton = Beton(
        path=path,
        page_size=int(header["page_size"]),
        labels=np.empty(num_samples, np.int64),
        class_names=_class_names(sidecar),
        modes=np.empty(num_samples, np.uint8),
        heights=np.empty(num_samples, np.uint16),
        widths=np.empty(num_samples, np.uint16),
        ptrs=np.empty(num_samples, np.int64),
        sizes=np.empty(num_samples, np.uint32),
        sidecar=sidecar,
        file_size=len(content),
        extent=Extent(0, 0, 0),
        pair=pair,
    )
    beton = dataclasses.replace(beton, extent=_read_samples(beton, samples, sizes, data_start, table_start))
    if compare_checksum:
        _check_checksum(beton, content[:data_start], content[table_start:])
    return beton


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file, uint8."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"the data set {path} {what}; give the .beton file that ffcv-train write made")
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; make it again with ffcv-train write") from None


def _checked_header(content: np.ndarray, path: Path) -> np.void:
    header = _table(content, path, "header", HEADER, 0, 1)[0]
    # A foreign file fails at the first of these that it happens to violate.
    if not _header_fits(header):
        raise UserError(f"{path} is not a .beton file (its header does not fit); make it with ffcv-train write")
    if int(header["num_samples"]) < 1:
        raise UserError(f"{path} holds no samples, or was not written to its end; make it again with ffcv-train write")
    return header


def _check_fields(fields: np.ndarray, path: Path) -> None:
    names = tuple(bytes(name).split(b"\0")[0].decode("ascii", "replace") for name in fields["name"])
    type_ids = tuple(int(type_id) for type_id in fields["type_id"])
    if names != _FIELD_NAMES or type_ids != (IMAGE_TYPE_ID, INT_TYPE_ID):
        raise UserError(
            f"{path} has the fields {', '.join(names)}, but images and labels are wanted (image: RGBImageField, "
            f"label: IntField); make it with ffcv-train write"
        )


def _check_checksum(beton: Beton, start: np.ndarray, end: np.ndarray) -> None:
    """Compare the tables before and after the pages with the checksum in the sidecar, where it holds one."""
    sidecar = beton.sidecar
    if sidecar is None or sidecar.get("checksums") is None:
        return
    if _tables_checksum(sidecar) != zlib.crc32(end.data, zlib.crc32(start.data)):
        raise UserError(
            f"the tables of {beton.path} differ from their checksum in {sidecar_path(beton.path)}; copy both files "
            f"again, or make them again"
        )


def _table(content: np.ndarray, path: Path, what: str, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    end = offset + count * dtype.itemsize
    if end > len(content):
        raise _truncated(path, what, end, len(content))
    return np.asarray(content)[offset:end].view(dtype)


def _truncated(path: Path, what: str, end: int, size: int) -> UserError:
    return UserError(
        f"{path} is truncated or damaged: its {what} reaches to byte {end}, the file has {size} bytes; "
        f"copy it again or make it again with ffcv-train write"
    )


def _parts(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _ROWS, count)) for first in range(0, count, _ROWS))


def _sizes(path: Path, ptrs: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The size (uint64 [N]) of the region of each sample, which begins at `ptrs` (uint64 [N])."""
    if _in_order(ptrs, regions):
        return regions["size"]
    # FFCV's writers end in any order.
    order = np.argsort(regions["ptr"], kind="stable")
    known = regions["ptr"][order]
    sizes = np.empty(len(ptrs), np.uint64)
    for part in _parts(len(ptrs)):
        wanted = ptrs[part]
        position = np.searchsorted(known, wanted)
        found = position < len(known)
        found[found] = known[position[found]] == wanted[found]
        if not found.all():
            first = part.start + int(np.flatnonzero(~found)[0])
            raise UserError(
                f"{path} is damaged: sample {first} points to byte {ptrs[first]}, where no image was stored; "
                f"make it again with ffcv-train write"
            )
        own = regions[order[position]]
        strange = np.flatnonzero(own["sample_id"] != np.arange(part.start, part.stop, dtype=np.uint64))
        if len(strange):
            first = part.start + int(strange[0])
            raise UserError(
                f"{path} is damaged: sample {first} points to byte {ptrs[first]}, which holds the image of sample "
                f"{own['sample_id'][strange[0]]}; make it again with ffcv-train write"
            )
        sizes[part] = own["size"]
    return sizes


def _in_order(ptrs: np.ndarray, regions: np.ndarray) -> bool:
    """Whether the n-th region is the n-th sample's, one behind the other, as in files of ours."""
    if len(ptrs) != len(regions):
        return False
    last = -1
    for part in _parts(len(ptrs)):
        own = regions[part]
        places = own["ptr"].copy()
        if int(places[0]) <= last or (places[1:] <= places[:-1]).any() or (places != ptrs[part]).any():
            return False
        if (own["sample_id"] != np.arange(part.start, part.stop, dtype=np.uint64)).any():
            return False
        last = int(places[-1])
    return True


def _read_samples(beton: Beton, samples: np.ndarray, sizes: np.ndarray, data_start: int, data_end: int) -> Extent:
    """Fill the tables of `beton` from those of the file and check every row; returns what its samples take at most."""
    limit = np.uint64(np.iinfo(np.int64).max // 4)
    image_bytes = stored_bytes = side = 0
    for part in _parts(len(beton)):
        rows = samples[part]
        image = rows["f0"]
        if (sizes[part] > limit).any() or (image["data_ptr"] > limit).any():
            raise UserError(
                f"{beton.path} is damaged: an image's position or size is absurd; make it again with ffcv-train write"
            )
        beton.ptrs[part], beton.labels[part], beton.modes[part] = image["data_ptr"], rows["f1"], image["mode"]
        beton.heights[part], beton.widths[part] = image["height"], image["width"]
        stored, pixels = sizes[part].astype(np.int64), beton.pixels(part)
        _check_samples(beton, part, stored, pixels, data_start, data_end)
        beton.sizes[part] = stored
        jpeg = beton.modes[part] != MODE_RAW
        image_bytes = max(image_bytes, 3 * int(pixels.max(where=jpeg, initial=0)))
        stored_bytes = max(stored_bytes, int(stored.max(where=jpeg, initial=0)))
        side = max(side, int(beton.heights[part].max()), int(beton.widths[part].max()))
    return Extent(image_bytes, stored_bytes, side)


def _check_samples(
    beton: Beton, part: slice, sizes: np.ndarray, pixels: np.ndarray, data_start: int, data_end: int
) -> None:
    """Raise `UserError` naming the first of the samples `part` whose row cannot be; `sizes`, `pixels` are theirs."""
    ptrs = beton.ptrs[part]
    last_byte = ptrs + sizes - 1
    raw = beton.modes[part] == MODE_RAW
    checks = (
        ((beton.modes[part] > MODE_RAW), "has an unknown storage mode"),
        (pixels < 1, "has no pixels"),
        ((sizes < 1) | (ptrs < data_start) | (last_byte >= data_end), "lies outside the data region"),
        ((ptrs // beton.page_size != last_byte // beton.page_size), "crosses a page"),
        (raw & (sizes != pixels * 3), "is raw but not height × width × 3 bytes long"),
        # Before anyone takes memory for it.
        (~raw & (pixels > sizes * _MAX_PIXELS_PER_BYTE), "claims more pixels than its bytes can hold"),
        ((beton.labels[part] < 0), "has a negative label"),
    )
    for wrong, what in checks:
        if wrong.any():
            first = part.start + int(np.flatnonzero(wrong)[0])
            raise UserError(f"{beton.describe(first)} {what}; the file is damaged, make it again with ffcv-train write")


def _pair(arguments: bytes) -> str:
    mark, _, rest = arguments.partition(PAIR_MARK)
    return rest[:64].decode("ascii", "replace") if not mark and rest else ""


def _read_sidecar(path: Path, num_samples: int, pair: str) -> Sidecar | None:
    file = sidecar_path(path)
    if not file.exists():
        if pair:
            raise UserError(
                f"{file}, which was written with {path.name} and names its classes, is missing; copy it there too, or "
                f"write the data set again"
            )
        return None
    sidecar, fits = None, False
    try:
        sidecar = open_sidecar(file)
        names, count = sidecar["class_names"], sidecar["num_samples"]
        fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
        fits &= sidecar.may_list_texts("files")
    except (OSError, ValueError, KeyError, OverflowError):
        count = num_samples
    checksums = sidecar.get("checksums") if sidecar is not None and fits else None
    other = checksums.get("pair", "") if isinstance(checksums, Mapping) else ""
    if fits and other != pair:
        raise UserError(
            f"{file} was not written with {path.name}: one of the two was replaced alone, or the conversion was killed "
            f"as it ended; copy both again, or write the data set again"
        )
    if not fits or count != num_samples:
        advice = "copy both again" if pair else "delete it"
        raise UserError(
            f"{file} does not describe {path.name}; {advice}, or write the data set again so that both belong together"
        )
    return sidecar


def _class_names(sidecar: Sidecar | None) -> tuple[str, ...] | None:
    if sidecar is None or not sidecar.get("named", True):
        return None
    return tuple(map(tidy, sidecar["class_names"]))


def _tables_checksum(sidecar: Mapping[str, Any]) -> int | None:
    """The CRC-32 of the tables in the sidecar; None where it is no number."""
    try:
        return int(sidecar["checksums"]["tables"], 16)
    except (ValueError, KeyError, TypeError):
        return None
