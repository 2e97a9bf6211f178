"""Data sets of every format that data.format names."""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import Classes, Match, check_labels, match_classes, used_names
from ffcv_train.data.format.beton import Beton, is_beton, open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.loading.sampling import describe_sampling, sampling_weights
from ffcv_train.data.sources.class_files import read_class_names
from ffcv_train.data.sources.image_set import ImageSet, open_image_set
from ffcv_train.system.class_names import filled
from ffcv_train.system.distributed import Process, share_of_cores
from ffcv_train.system.errors import UserError, speaking_of_arguments
from ffcv_train.system.resources import available_bytes

DataSet = Beton | ImageSet
FORMATS = ("beton", "zip", "folder")


def open_data_set(path: str | Path, format: str | None = None, classes: str | Path = "") -> DataSet:
    """Open a .beton file, a .zip of images with its map beside it, or a folder with a folder of images per class.

    `format`, "beton", "zip" or "folder" (data.format), is what `path` must be, or a .beton file, by name or content,
    whatever it says; None takes what it is. `classes` names the classes of a zip or folder in label order: a text file
    with a name a line, or a .beton that has them. Names, labels and places of all samples are read and checked, no
    image is. Raises `UserError` for what is missing, damaged or does not fit, and `ValueError` for another `format`.

    >>> data_set = open_data_set("train.beton")
    >>> len(data_set), data_set.labels[:4]
    (96, array([0, 1, 2, 3]))
    """
    if format not in (*FORMATS, None):
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, or None, not {format!r}")
    path, classes = str(path), str(classes)
    if format is None:
        with speaking_of_arguments():
            return _open_any(path, classes)
    if format != "beton" and not _is_beton(path):
        return open_image_set(path, format, classes)
    found = _kind_of_images(path)
    if found:
        raise UserError(
            f"the data set {path} is a {found} of images; pass --data.format={found} to read it as it is, or convert "
            "it with ffcv-train write and give the .beton file"
        )
    return _open_beton(path, classes)


def open_further(path: str | Path, classes: str = "") -> DataSet:
    """Open a data set that a command reads besides those of data.train_dataset and data.val_dataset, of any format.

    `classes` is the file of data.classes, which was written for those: here it counts where it names all classes that
    have images, or nothing else names them. Otherwise the data set's own names stand, as a .beton's always do. Raises
    `UserError`.
    """
    found = _open_any(str(path), "")
    if not classes or isinstance(found, Beton):
        return found
    names = read_class_names(classes)
    if found.class_names is None:
        return dataclasses.replace(found, class_names=names) if int(found.labels.max()) < len(names) else found
    if not set(used_names(found)) <= set(names):
        return found
    return relabelled(found, match_classes(found, Classes(classes, names, len(names), ignorable=False)), names)


def open_together(paths: Iterable[str], format: str, classes: str, further: Iterable[str] = ()) -> list[DataSet]:
    """The data sets that data.classes is meant for: a .beton beside a zip or folder has its own names instead.

    `further` are those that the same command opens by `open_further`. Raises `UserError`, for a list of classes that
    none of all these takes too.
    """
    paths = tuple(paths)
    of_betons = classes if all(map(_is_beton, (*paths, *further))) else ""
    return [open_data_set(path, format, of_betons if _is_beton(path) else classes) for path in paths]


def without_unread_list(config: RunConfig, own: Iterable[str], others: Iterable[str]) -> RunConfig:
    """`config` without data.classes where the list is for one of `others`, and its `own` data sets are .beton files."""
    if not all(map(_is_beton, own)) or all(map(_is_beton, others)):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, classes=""))


def relabelled(data_set: DataSet, match: Match, names: tuple[str, ...] | None) -> DataSet:
    """`data_set` with the labels that `match` gives it, which are those of `names` where they are known."""
    labels = data_set.labels if match.labels is None else match.labels[data_set.labels]
    return dataclasses.replace(data_set, labels=labels, class_names=names or data_set.class_names)


def _open_any(path: str, classes: str) -> DataSet:
    kind = _kind_of_images(path)
    return open_image_set(path, kind, classes) if kind else _open_beton(path, classes)


def _kind_of_images(path: str) -> str:
    if _is_beton(path):
        return ""
    return "folder" if Path(path).is_dir() else "zip" if path.endswith(".zip") and Path(path).is_file() else ""


def _is_beton(path: str) -> bool:
    return Path(path).is_file() and (path.endswith(".beton") or is_beton(path))


def _open_beton(path: str, classes: str) -> Beton:
    if classes:
        raise UserError(
            f"data.classes={classes} names classes of a zip or folder, and {path} is a .beton file, which names its own"
            "; leave --data.classes out, or write the file anew with --cfg.classes"
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
    """With the labels of `train`"""
    num_classes: int
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    """What the user should know about them"""
    weights: np.ndarray | None = None
    """float64 [N], of the training samples, as `EpochPlan` has them"""

    @property
    def samples(self) -> int:
        """Samples that an epoch of training draws."""
        return len(self.train) if self.weights is None else int(np.count_nonzero(self.weights))

    @property
    def class_counts(self) -> list[int]:
        """Different training samples of each class."""
        labels = self.train.labels if self.weights is None else self.train.labels[self.weights > 0]
        return np.bincount(labels, minlength=self.num_classes).tolist()

    def digests(self) -> dict[str, str]:
        """Of "train", with its weights, and "val"."""
        train = self.train.digest()
        if self.weights is not None:
            train = hashlib.sha256(train.encode() + self.weights.tobytes()).hexdigest()
        return {"train": train, "val": self.val.digest()}


def open_data_sets(config: RunConfig) -> DataSets:
    """Open and check both data sets and their fit to each other and to model.num_classes."""
    for name in ("train_dataset", "val_dataset"):
        if not getattr(config.data, name):
            raise UserError(f"data.{name} is not set; give the .beton file with --data.{name}=FILE")
    data = config.data
    train, val = open_together((data.train_dataset, data.val_dataset), data.format, data.classes)
    names = train.class_names
    num_classes = config.model.num_classes or train.num_classes
    if not num_classes:
        raise UserError(f"nothing names the classes of {train.path}; set --model.num_classes")
    if num_classes < train.num_classes:
        raise UserError(
            f"model.num_classes={num_classes}, but {train.path} has {train.num_classes} classes; leave it at 0 to take "
            "theirs"
        )
    check_labels(train, num_classes)
    val, note = match_val(train, val, num_classes)
    if data.in_memory and isinstance(train, Beton):
        check_fits(train, available_bytes())
    if names is not None:  # outputs beyond the classes that the data has
        names = filled(dict(enumerate(names)), num_classes)
    weights = sampling_weights(data.sampling, data.subset, train.labels)
    drawn = [] if weights is None else [describe_sampling(weights, train.labels)]
    notes = (*train.notes, *val.notes, *([note] if note else []), *drawn)
    return DataSets(train, val, num_classes, names, tuple(dict.fromkeys(notes)), weights)


def match_val(train: DataSet, val: DataSet, num_classes: int) -> tuple[DataSet, str]:
    """`val` with the labels of `train`, matched by the names of the classes, and a note for the user, or "".

    Raises `UserError` where `val` has other classes, or where nothing says whether they are the same.
    """
    classes = Classes(str(train.path), train.class_names, num_classes, ignorable=False)
    if val.class_names is None and train.class_names is None:
        check_labels(val, num_classes)
        return val, f"nothing names the classes of {train.path} and {val.path}: their labels are taken as they are"
    match = match_classes(val, classes)
    return relabelled(val, match, train.class_names), match.note


def train_loader(
    config: RunConfig, data_set: DataSet, batch_size: int, process: Process, weights: np.ndarray | None = None
) -> BetonLoader | ImageLoader:
    """Random crops and flips in a random order; `batch_size` is this process's, `weights` as in `EpochPlan`."""
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
            weights=weights,
        )
    return BetonLoader(
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
        weights=weights,
    )


def center_crop_of(config: RunConfig) -> CenterCrop:
    """The crop that validation and evaluation take."""
    how = config.validation
    return CenterCrop(how.crop_ratio, how.interpolation, how.crop)


def val_loader(config: RunConfig, data_set: DataSet, resolution: int, process: Process) -> BetonLoader | ImageLoader:
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
    return BetonLoader(
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
