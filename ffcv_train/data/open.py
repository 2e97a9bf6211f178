"""Data sets of every format that data.format names."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import check_labels
from ffcv_train.data.format.beton import Beton, is_beton, open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loading.beton_loader import Loader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.sources.image_set import ImageSet, open_image_set
from ffcv_train.system.distributed import Process, share_of_cores
from ffcv_train.system.errors import UserError, speaking_of_arguments
from ffcv_train.system.resources import available_bytes

DataSet = Beton | ImageSet
FORMATS = ("beton", "zip", "folder")


def open_data_set(path: str | Path, format: str | None = None) -> DataSet:
    """Open a .beton file, a .zip of images with its map beside it, or a folder with a folder of images per class.

    `format`, "beton", "zip" or "folder" (data.format), is what `path` must be, or a .beton file, by name or content,
    whatever it says; None takes what it is. Names, labels and places of all samples are read and checked, no image is.
    Raises `UserError` for what is missing, damaged or does not fit, and `ValueError` for another `format`.

    >>> data_set = open_data_set("train.beton")
    >>> len(data_set), data_set.labels[:4]
    (96, array([0, 1, 2, 3]))
    """
    if format not in (*FORMATS, None):
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, or None, not {format!r}")
    path = str(path)
    file = Path(path).is_file()
    beton = file and (path.endswith(".beton") or is_beton(path))
    found = "folder" if Path(path).is_dir() else "zip" if path.endswith(".zip") and file and not beton else ""
    if format is None:
        with speaking_of_arguments():
            return open_image_set(path, found) if found else open_beton(path)
    if format != "beton":
        return open_beton(path) if beton else open_image_set(path, format)
    if found:
        raise UserError(
            f"the data set {path} is a {found} of images; train from it with --data.format={found}, or convert it with "
            "ffcv-train write and give the .beton file"
        )
    return open_beton(path)


def check_fits(beton: Beton, available: int) -> None:
    """Raise `UserError` when the file is larger than `available` bytes."""
    if beton.file_size > available:
        raise UserError(
            f"{beton.path} has {beton.file_size / 2**30:.1f} GiB, but only {available / 2**30:.1f} GiB of memory are "
            f"available; train with --data.in_memory=0"
        )


@dataclass(frozen=True)
class DataSets:
    """The opened data sets and what they say about the classes."""

    train: DataSet
    val: DataSet
    num_classes: int
    class_names: tuple[str, ...] | None

    @property
    def class_counts(self) -> list[int]:
        """Training samples of each class."""
        return np.bincount(self.train.labels, minlength=self.num_classes).tolist()


def open_data_sets(config: RunConfig) -> DataSets:
    """Open and check both data sets and their fit to each other and to model.num_classes."""
    for name in ("train_dataset", "val_dataset"):
        if not getattr(config.data, name):
            raise UserError(f"data.{name} is not set; give the .beton file with --data.{name}=FILE")
    train, val = (
        open_data_set(path, config.data.format) for path in (config.data.train_dataset, config.data.val_dataset)
    )
    names = train.class_names
    if names is not None and val.class_names is not None and names != val.class_names:
        longer = max(names, val.class_names, key=len)
        first = next(
            (i for i, pair in enumerate(zip(names, val.class_names, strict=False)) if pair[0] != pair[1]),
            min(len(names), len(val.class_names)),
        )
        raise UserError(
            f"{train.path} and {val.path} have different classes, from label {first} ({longer[first]}) on; "
            f"write both from the same set of classes"
        )
    num_classes = config.model.num_classes or (len(names) if names is not None else 0)
    if not num_classes:
        raise UserError(f"nothing names the classes of {train.path}; set --model.num_classes")
    if names is not None and num_classes < len(names):
        raise UserError(
            f"model.num_classes={num_classes}, but {train.path} has {len(names)} classes; leave it at 0 to take theirs"
        )
    for data_set in (train, val):
        check_labels(data_set, num_classes)
    if config.data.in_memory and isinstance(train, Beton):
        check_fits(train, available_bytes())
    if names is not None:  # outputs beyond the classes that the data has
        names += tuple(str(label) for label in range(len(names), num_classes))
    return DataSets(train, val, num_classes, names)


def train_loader(config: RunConfig, data_set: DataSet, batch_size: int, process: Process) -> Loader | ImageLoader:
    """Random crops and flips in a random order; `batch_size` is this process's."""
    data = config.data
    crop = RandomResizedCrop(
        (data.crop_scale[0], data.crop_scale[1]),
        (data.crop_ratio[0], data.crop_ratio[1]),
        data.flip,
        data.interpolation,
        data.dct_scaling,
    )
    if not isinstance(data_set, Beton):
        return ImageLoader(
            data_set,
            batch_size,
            crop=crop,
            resolution=config.resolution.max_res,
            process=process,
            num_workers=data.num_workers or share_of_cores(process),
            augment=config.augment,
            seed=config.training.seed,
            batches_ahead=data.batches_ahead,
            cache=data.cache,
        )
    return Loader(
        data_set,
        batch_size,
        crop=crop,
        resolution=config.resolution.max_res,
        device=process.device,
        order="random" if data.in_memory else "quasi_random",
        num_workers=data.num_workers or share_of_cores(process),
        seed=config.training.seed,
        rank=process.rank,
        world_size=process.world_size,
        batches_ahead=data.batches_ahead,
        repeats=config.augment.repeats,
        decode="device" if data.decode == "device" else "host",
    )


def center_crop_of(config: RunConfig) -> CenterCrop:
    """The crop that validation and evaluation take."""
    how = config.validation
    return CenterCrop(how.crop_ratio, how.interpolation, how.crop)


def val_loader(config: RunConfig, data_set: DataSet, resolution: int, process: Process) -> Loader | ImageLoader:
    """Centre crops of every sample once."""
    crop = center_crop_of(config)
    if not isinstance(data_set, Beton):
        return ImageLoader(
            data_set,
            config.validation.batch_size,
            crop=crop,
            resolution=resolution,
            process=process,
            num_workers=config.data.num_workers or share_of_cores(process),
            batches_ahead=config.data.batches_ahead,
            cache=config.data.cache,
        )
    return Loader(
        data_set,
        config.validation.batch_size,
        crop=crop,
        resolution=resolution,
        device=process.device,
        order="sequential",
        num_workers=config.data.num_workers or share_of_cores(process),
        rank=process.rank,
        world_size=process.world_size,
        batches_ahead=config.data.batches_ahead,
    )
