"""The images of a Grad-CAM figure: a few of a folder, a .beton file or an archive, cut as evaluation does."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import used_names
from ffcv_train.data.format.beton import Beton, is_beton
from ffcv_train.data.open import open_data_set, val_loader
from ffcv_train.data.sources.archives import ZipBlob
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode_rgb
from ffcv_train.data.sources.image_set import ImageSet
from ffcv_train.data.sources.walk import is_hidden, is_image_file
from ffcv_train.evaluation.preprocessing import center_crops, read_image
from ffcv_train.models.class_names import ClassNames, imagenet_names
from ffcv_train.system.class_names import alike, shown_apart, tidy
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError

MAX_IMAGES = 12
_DRAWN = 6


@dataclasses.dataclass(frozen=True, eq=False)
class BetonImages:
    """Samples of a .beton file."""

    data_set: Beton
    """With these samples alone"""
    files: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    """What stands for the class of an image whose label is not known; here all are"""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.data_set.class_names

    @property
    def used_names(self) -> tuple[str, ...]:
        """Names of the classes that images are of."""
        return used_names(self.data_set)

    def labels(self, names: ClassNames | None) -> list[int | None]:
        """The true labels."""
        return [int(label) for label in self.data_set.labels]

    def read(self, config: RunConfig, process: Process) -> Tensor:
        """uint8 [B, 3, R, R] on the device: centre crops at the first of `config.validation.resolution`."""
        validation = dataclasses.replace(config.validation, batch_size=len(self.data_set))
        config = dataclasses.replace(config, validation=validation)
        side = validation.resolution[0]
        with contextlib.closing(val_loader(config, self.data_set, side, process)) as loader:
            (batch,) = list(loader.epoch())
            return batch.images.clone()


@dataclasses.dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files; those in a folder of their own are of the class that it is named after."""

    files: tuple[Path, ...]
    texts: tuple[str, ...]
    """The folder's name; empty for files without"""
    class_names: tuple[str, ...] | None = None

    @property
    def used_names(self) -> tuple[str, ...]:
        """Names of the classes that images are of."""
        return tuple(dict.fromkeys(text for text in self.texts if text))

    def labels(self, names: ClassNames | None) -> list[int | None]:
        """The true labels; None where a file lies in no class folder, or the names of the classes are not known.

        Raises `UserError` where a folder is named after no class.
        """
        found: list[int | None] = []
        for file, text in zip(self.files, self.texts, strict=True):
            label = names.find(text) if names is not None and text else None
            if label is None and names is not None and names.keys == imagenet_names().keys and text.isdecimal():
                label = int(text) if int(text) < len(names.keys) else None  # ImageNetV2's folders
            if names is not None and text and label is None:
                twin = next((name for name in names.keys if alike(name, text)), None)
                if twin is not None:
                    here, there = shown_apart(text, twin)
                    raise UserError(f"the folder {file.parent} is called {here}, the class {there}; rename it")
                raise UserError(
                    f"the folder {file.parent} is named after no class of the model, such as "
                    f"{', '.join(names.keys[:3])}; rename it, or put its files directly into --images, where they have "
                    "no class"
                )
            found.append(label)
        return found

    def read(self, config: RunConfig, process: Process) -> Tensor:
        """uint8 [B, 3, R, R] on the device: centre crops at the first of `config.validation.resolution`."""
        return center_crops([read_image(file) for file in self.files], config, process)


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveImages:
    """Images of a zip archive with a map."""

    data_set: ImageSet
    """With all images"""
    indices: tuple[int, ...]
    """Those of the figure"""
    files: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.data_set.class_names

    @property
    def used_names(self) -> tuple[str, ...]:
        """Names of the classes that images are of."""
        return used_names(self.data_set)

    def labels(self, names: ClassNames | None) -> list[int | None]:
        """The true labels."""
        return [int(self.data_set.labels[index]) for index in self.indices]

    def read(self, config: RunConfig, process: Process) -> Tensor:
        """uint8 [B, 3, R, R] on the device: centre crops at the first of `config.validation.resolution`."""
        return center_crops([self._decode(index) for index in self.indices], config, process)

    def _decode(self, index: int) -> np.ndarray:
        place = self.data_set.source.place(index)
        assert isinstance(place, ZipBlob)
        try:
            return contiguous(decode_rgb(place.read()))
        except (ImageError, OSError) as error:
            raise UserError(f"{self.data_set.describe(index)}: {error}; repair it, or name other --indices") from None


Images = BetonImages | FolderImages | ArchiveImages


def open_images(
    path: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    classes: str = "",
) -> Images:
    """The images that `path` holds, or `count` of them, drawn by `seed`, or the samples `indices`, in that order.

    `classes` is data.classes, for a zip; class folders go by their names.
    Raises `UserError` where there are none, too many, or `indices` do not fit.
    """
    path = Path(path)
    if path.is_dir():
        if indices is not None:
            raise UserError(f"--indices are samples of a .beton file or a .zip, and {path} is a folder; use --count")
        return _open_folder(path, count, seed)
    archive = path.suffix.lower() == ".zip" and not is_beton(path)
    if path.suffix.lower() != ".beton" and not archive and path.is_file() and not is_beton(path):
        raise UserError(
            f"--images {path} is neither a folder nor a .beton file or a .zip; put the images into a folder"
        )
    data_set = open_data_set(path, "zip" if archive else "beton", classes)
    if indices is None:
        indices = _draw(len(data_set), min(count or _DRAWN, len(data_set)), seed)
    if len(indices) > MAX_IMAGES:
        raise UserError(f"a figure has at most {MAX_IMAGES} columns, not {len(indices)}; give fewer --indices")
    for index in indices:
        if not 0 <= index < len(data_set):
            raise UserError(f"--indices {index}: {path} has samples 0 to {len(data_set) - 1}")
    if isinstance(data_set, ImageSet):
        return ArchiveImages(data_set, tuple(indices))
    return BetonImages(subset(data_set, indices))


def subset(beton: Beton, indices: Sequence[int]) -> Beton:
    """The samples `indices` of `beton`, in that order."""
    where = np.asarray(indices, dtype=np.int64)
    tables = {name: getattr(beton, name)[where] for name in ("labels", "modes", "heights", "widths", "ptrs", "sizes")}
    sidecar = beton.sidecar
    if sidecar is not None and beton.files:
        sidecar = {**sidecar, "files": [beton.files[index] for index in indices]}
    return dataclasses.replace(beton, sidecar=sidecar, **tables)


def _open_folder(path: Path, count: int | None, seed: int) -> FolderImages:
    def images(folder: Path) -> list[Path]:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file() and not is_hidden(entry.name))
        return [file for name in names if is_image_file(file := folder / name)]

    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        found = [(file, "") for file in images(path)]
        found += [(file, tidy(folder.name)) for folder in folders for file in images(folder)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; check its rights") from None
    if not found:
        raise UserError(f"--images {path} holds no image files; give a folder with images, or with a folder per class")
    if count is None and len(found) > MAX_IMAGES:
        raise UserError(
            f"--images {path} holds {len(found):,} images, and a figure has at most {MAX_IMAGES} columns; draw some "
            "with --count N"
        )
    if count is not None and count < len(found):
        found = [found[index] for index in _draw(len(found), count, seed)]
    return FolderImages(tuple(file for file, _ in found), tuple(text for _, text in found))


def _draw(size: int, count: int, seed: int) -> list[int]:
    return sorted(np.random.default_rng(seed).permutation(size)[:count].tolist())
