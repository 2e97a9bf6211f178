"""Files of logits and features: one ordinary file of torch.save, written and read without holding it in memory.

`torch.load(path, mmap=True, weights_only=True)` gives a dictionary:

- `logits` float32 [N, K]; `labels` int64 [N]; `indices` int64 [N], positions in the data set;
- `features` float32 [N, D], the input of the last layer; only where they were asked for;
- `last_layer`: `weight` float32 [K, D] and `bias` float32 [K] or None; None where the network has no such layer;
- `class_names`: texts in label order, or None;
- `about`: what the numbers depend on (checkpoint, data set, resolution, versions …), numbers and texts.

Files that hold `logits` and `labels` alone, as the MaxSup paper's tools write them, are read as well.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, whole_file

FORMAT = 1


@dataclass(frozen=True, eq=False)
class LogitsFile:
    """An opened file of logits; the tensors are mapped from the disk, and only what is touched is read."""

    path: Path
    logits: Tensor
    """[N, K], float32 where the file is ours"""
    labels: Tensor
    """int64 [N] in [0, K)"""
    features: Tensor | None = None
    """[N, D], or None where they were not stored"""
    indices: Tensor | None = None
    weight: Tensor | None = None
    """[K, D]"""
    bias: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def data_set(self) -> str:
        """The name of the data set's file; empty where it is not known."""
        return Path(str(self.about.get("data_set", ""))).name

    def need_features(self) -> Tensor:
        """The features. Raises `UserError` where they were not stored."""
        if self.features is None:
            raise UserError(f"{self.path} holds no features; write it again with ffcv-train logits --features")
        return self.features

    def need_weight(self) -> Tensor:
        """The last layer's weight. Raises `UserError` where it was not stored."""
        if self.weight is None:
            raise UserError(
                f"{self.path} holds no last layer, whose rows are the class templates; write it again with "
                "ffcv-train logits from an architecture whose logits come from one linear layer"
            )
        return self.weight


def read_logits(path: str | Path) -> LogitsFile:
    """Open a file of logits; executes nothing from it. Raises `UserError` where it is none or is damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; ffcv-train logits --output writes such a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        raise UserError(f"{path} is not a file of ffcv-train logits, or it is damaged; write it again") from None
    if not isinstance(content, Mapping) or not all(isinstance(content.get(k), Tensor) for k in ("logits", "labels")):
        raise UserError(f"{path} holds no logits with labels; give a file that ffcv-train logits wrote")
    last_layer = content.get("last_layer") or {}
    names = content.get("class_names")
    tensors = [content.get("features"), content.get("indices")]
    if isinstance(last_layer, Mapping):
        tensors += [last_layer.get("weight"), last_layer.get("bias")]
    known = all(part is None or isinstance(part, Tensor) for part in tensors)
    if not known or not all(isinstance(part, Mapping) for part in (last_layer, content.get("about") or {})):
        raise UserError(f"{path} has other contents than ffcv-train logits writes; write it again")
    opened = LogitsFile(
        path=path,
        logits=content["logits"],
        labels=_integers(content["labels"]),
        features=content.get("features"),
        indices=content.get("indices"),
        weight=last_layer.get("weight"),
        bias=last_layer.get("bias"),
        class_names=tuple(names) if names else None,
        about=content.get("about") or {},
    )
    _check(opened)
    return opened


@contextlib.contextmanager
def create_logits(
    path: str | Path,
    *,
    rows: int,
    classes: int,
    features: int = 0,
    about: Mapping[str, Any],
    class_names: tuple[str, ...] | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Iterator[Path]:
    """Reserve a file of `rows` samples on the disk and yield its temporary name, to be filled by `fill_rows`.

    When the context ends the file takes the name `path`; on an exception it disappears. `features` is their number per
    sample, 0 for none. The zip container's checksums, which PyTorch does not read, stay empty. Raises `UserError`
    where the disk lacks the space.
    """
    path = Path(path)
    last_layer = None
    if weight is not None:
        last_layer = {"weight": _plain(weight), "bias": None if bias is None else _plain(bias)}
    with disk_errors(path):
        _check_space(path, rows * (4 * classes + 4 * features + 16))
    with whole_file(path) as temporary:
        with disk_errors(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            # Holes of the right size: torch.save writes where the bytes belong, not the bytes.
            shapes = {"logits": (rows, classes), "features": (rows, features)}
            content: dict[str, Any] = {
                key: _hole(Path(folder) / key, shape) for key, shape in shapes.items() if shape[1]
            }
            content |= {key: torch.zeros(rows, dtype=torch.int64) for key in ("labels", "indices")}
            content |= {"format": FORMAT, "last_layer": last_layer, "about": dict(about)}
            content["class_names"] = None if class_names is None else list(class_names)
            with torch.serialization.skip_data():
                torch.save(content, temporary)
            del content
        # All of its space now: a full disk would end a program that writes to a mapped hole.
        with disk_errors(path), temporary.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        if last_layer is not None:
            _fill_last_layer(temporary, last_layer)
        yield temporary


def fill_rows(temporary: Path, positions: Tensor, values: Mapping[str, Tensor]) -> None:
    """Write rows of `logits`, `labels`, `features` at `positions` (int64 [n], the sample indices) of `create_logits`.

    Processes of one machine may fill different rows of one file at a time.
    """
    # A mapping per call: pages of an earlier one do not count as this process's memory any more.
    content = _writable(temporary)
    content["indices"][positions] = positions
    for key, rows in values.items():
        content[key][positions] = rows.to(content[key].dtype)


class RowBuffer:
    """Gathers rows in memory and hands them to `fill_rows` in pieces of `limit` bytes."""

    def __init__(self, temporary: Path, limit: int = 64 << 20) -> None:
        self.temporary = temporary
        self.limit = limit
        self._rows: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._bytes = 0

    def add(self, positions: Tensor, values: Mapping[str, Tensor]) -> None:
        """Rows on any device; see `fill_rows`."""
        # Copies: a loader's batch must not live on because its labels do.
        rows = {key: value.to("cpu", copy=True) for key, value in values.items()}
        self._rows.append((positions.to("cpu", copy=True), rows))
        self._bytes += sum(value.nbytes for value in rows.values())
        if self._bytes >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._rows:
            positions = torch.cat([where for where, _ in self._rows])
            keys = self._rows[0][1]
            fill_rows(
                self.temporary, positions, {key: torch.cat([rows[key] for _, rows in self._rows]) for key in keys}
            )
        self._rows, self._bytes = [], 0


def row_blocks(rows: int, columns: int, limit: int = 32 << 20) -> Iterator[slice]:
    """Slices that cover `rows` of `columns` float64 numbers in blocks of about `limit` bytes."""
    step = max(1, limit // (8 * max(1, columns)))
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _hole(path: Path, shape: tuple[int, int]) -> Tensor:
    return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=torch.float32).view(shape)


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"{path} needs {size / 2**30:.1f} GiB, and its disk has {free / 2**30:.1f} GiB free; free some space, or "
            "write to another disk"
        )


def _writable(temporary: Path) -> dict[str, Any]:
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(temporary, weights_only=True, mmap=True)


def _integers(labels: Tensor) -> Tensor:
    return labels if labels.is_floating_point() or labels.dtype == torch.bool else labels.long()


def _fill_last_layer(temporary: Path, last_layer: Mapping[str, Tensor | None]) -> None:
    stored = _writable(temporary)["last_layer"]
    for key, value in last_layer.items():
        if value is not None:
            stored[key].copy_(value)


def _check(opened: LogitsFile) -> None:
    path, logits, labels = opened.path, opened.logits, opened.labels
    n = len(labels)
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != n or not logits.is_floating_point() or not n:
        raise UserError(
            f"{path} holds logits {list(logits.shape)} and labels {list(labels.shape)}, not [N, K] and [N]; write it "
            "again with ffcv-train logits"
        )
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise UserError(f"{path} has labels beyond its {logits.shape[1]} logits; write it again with ffcv-train logits")
    features, weight = opened.features, opened.weight
    wrong = features is not None and (features.ndim != 2 or len(features) != n)
    wrong |= weight is not None and weight.shape[:1] != logits.shape[1:]
    wrong |= features is not None and weight is not None and weight.shape[1:] != features.shape[1:]
    if wrong or (opened.class_names is not None and len(opened.class_names) != logits.shape[1]):
        raise UserError(f"the parts of {path} do not fit together; write it again with ffcv-train logits")
