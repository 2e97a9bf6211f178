"""Image files in a zip archive or a folder as a data set of their own, for --data.format=zip and folder."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_train.data.sources.archives import Blob, ZipBlob
from ffcv_train.data.sources.folders import class_folders
from ffcv_train.data.sources.source import Source, SourceOptions
from ffcv_train.data.sources.zips import map_line, open_zip
from ffcv_train.system.errors import UserError

# ZipBlob but for its path.
_MEMBER = np.dtype([("offset", "i8"), ("size", "i8"), ("deflated", "?"), ("full_size", "i8"), ("crc", "u4")])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The names, places and labels of all images; none of them is read before it is asked for."""

    path: Path
    """The archive, or the folder"""
    source: Source
    map_file: Path | None
    labels: np.ndarray
    """int64 [N]"""
    class_names: tuple[str, ...] | None
    """In label order; None where nothing names them"""

    @property
    def num_classes(self) -> int:
        """The number of classes that are named; 0 where none is."""
        return len(self.class_names or ())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about what was found."""
        return self.source.notes

    @property
    def how_to_list(self) -> str:
        """How a list of class names is given to it, in words."""
        return "pass --data.classes=FILE"

    def __len__(self) -> int:
        return len(self.source)

    def digest(self) -> str:
        """A SHA-256 of all labels and names, and of what a zip's directory says of the images.

        The same for a copy anywhere; images of a folder are told apart by their names alone.
        """
        digest = hashlib.sha256(self.labels.tobytes())
        for index in range(len(self)):
            place = self.source.place(index)
            member = (place.full_size, place.crc) if isinstance(place, ZipBlob) else ()
            digest.update(repr((self.source.name(index), *member)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def describe(self, index: int) -> str:
        """Image `index` in words, with the line of the map where there is one."""
        name = self.source.name(index)
        if self.map_file is None:
            return f"{name} in {self.path}"
        return f"{name} (line {map_line(self.map_file, name)} of {self.map_file}) in {self.path}"


def open_image_set(path: str | Path, kind: str, classes: str = "") -> ImageSet:
    """Open what `data.format` calls a zip or a folder.

    A zip X.zip comes with X_map.txt beside it, whose lines are a path within the archive, or within its folder X, a
    tab and a label. A folder holds a folder per class. `classes` is a file of class names in label order, or empty.
    Raises `UserError` for what is missing or does not fit.
    """
    path = Path(path)
    if kind == "folder":
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise UserError(f"the data set {path} {what}; --data.format=folder wants one with a folder per class")
        for split in ("train", "val"):
            if (path / split).is_dir() and any(entry.is_dir() for entry in (path / split).iterdir()):
                raise UserError(f"the data set {path} holds several splits; name one of them, such as {path / split}")
        # The labels of a folder called val come from train beside it.
        split = path.name if path.name in ("train", "val") else "train"
        return _image_set(path, class_folders(SourceOptions(str(path), split, classes, option="--data.classes")), None)
    if path.is_dir() or path.suffix != ".zip":
        raise UserError(f"the data set {path} is no .zip file; --data.format=zip wants one, with its map beside it")
    map_file = path.with_name(f"{path.stem}_map.txt")
    return _image_set(path, open_zip(path, map_file, classes, "--data.classes"), map_file)


class Places:
    """Where each image lies, in a few arrays.

    Worker processes are forks that share the parent's memory until either writes to it, and reading a list of objects
    writes to their reference counts: each worker would end up with a copy of the list.
    """

    def __init__(self, source: Source) -> None:
        places = [source.place(index) for index in range(len(source))]
        self._members: np.ndarray | None = None
        if isinstance(places[0], ZipBlob):
            self._archive = places[0].path
            self._members = np.array([place[1:] for place in places], _MEMBER)
            return
        names = [os.fsencode(place.path) for place in places if isinstance(place, Blob)]
        assert len(names) == len(places)
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._ends = np.cumsum([len(name) for name in names])

    def __getitem__(self, index: int) -> Blob | ZipBlob:
        if self._members is not None:
            return ZipBlob(self._archive, *self._members[index].item())
        start = self._ends[index - 1] if index else 0
        return Blob(os.fsdecode(self._names[start : self._ends[index]].tobytes()))


def archive_of(images: ImageSet) -> Path | None:
    """The archive that the images lie in; None for a folder."""
    return images.path if isinstance(images.source.place(0), ZipBlob) else None


def _image_set(path: Path, source: Source, map_file: Path | None) -> ImageSet:
    if not len(source):
        raise UserError(f"{map_file or path} lists no images")
    return ImageSet(path, source, map_file, source.labels, source.class_names if source.named else None)
