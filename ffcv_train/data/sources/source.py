"""What a source of images is: samples that can be read in any order, labels, class names."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.data.sources.archives import Blob, ZipBlob

Place = Blob | ZipBlob | np.ndarray
"""Where an image's file is, or its pixels: uint8 [H, W, 3], RGB."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user asks for: options of ffcv-train write. `classes` is "" or a file that fixes the label order.

    `option` is what the user knows `classes` as.
    """

    data_dir: str
    split: str
    classes: str = ""
    download: bool = False
    option: str = "--cfg.classes"


class Source(ABC):
    """Samples 0 … len − 1; `class_names` stand in label order, `labels` are int64 [len] and index them.

    With `named` false nothing names the classes: what stands for their names are the labels themselves.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        notes: Sequence[str] = (),
        named: bool = True,
    ) -> None:
        self.class_names = tuple(class_names)
        self.labels = np.asarray(labels, np.int64)
        self.named = named
        self.notes = (*notes, *_empty_classes(self.class_names, self.labels))
        """What the user should know about what was found."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """The sample's name within the source."""

    @abstractmethod
    def place(self, index: int) -> Place:
        """Where the sample is to be read; small and picklable."""

    def read(self, index: int) -> bytes | np.ndarray:
        """The bytes of the sample's image file, or its pixels; raises `OSError`."""
        place = self.place(index)
        return place if isinstance(place, np.ndarray) else place.read()


class FileSource(Source):
    """Files below a folder."""

    def __init__(
        self, root: Path, files: Sequence[str], class_names: Sequence[str], labels: Any, **kwargs: Any
    ) -> None:
        super().__init__(class_names, labels, **kwargs)
        self.root = root
        self._files = files

    def name(self, index: int) -> str:
        return self._files[index]

    def place(self, index: int) -> Blob:
        return Blob(f"{self.root}/{self._files[index]}")


class ArchiveSource(Source):
    """Members of archives."""

    def __init__(
        self, members: Sequence[tuple[str, Blob | ZipBlob]], class_names: Sequence[str], labels: Any, **kwargs: Any
    ) -> None:
        super().__init__(class_names, labels, **kwargs)
        self._members = members

    def name(self, index: int) -> str:
        return self._members[index][0]

    def place(self, index: int) -> Blob | ZipBlob:
        return self._members[index][1]


class ArraySource(Source):
    """Pixels in memory: uint8 [N, H, W, 3], RGB."""

    def __init__(self, name: str, pixels: np.ndarray, class_names: Sequence[str], labels: Any) -> None:
        super().__init__(class_names, labels)
        self._name = name
        self._pixels = pixels

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def place(self, index: int) -> np.ndarray:
        return self._pixels[index]


def _empty_classes(class_names: Sequence[str], labels: np.ndarray) -> list[str]:
    without = np.setdiff1d(np.arange(len(class_names)), labels)
    if not len(without) or not len(labels):
        return []
    verb = "has" if len(without) == 1 else "have"
    first = f"{class_names[without[0]]!r}, label {without[0]}"
    return [
        f"{len(without)} of {len(class_names)} classes {verb} no images: {first}{', …' if len(without) > 1 else ''}"
    ]
