"""From a configuration to the parts of a run, every check before the first step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ffcv_train import distill, schedules
from ffcv_train.config import RunConfig
from ffcv_train.data.beton import Beton, check_labels
from ffcv_train.data.data_set import DataSet, open_data_set
from ffcv_train.data.decoders import CenterCrop, RandomResizedCrop
from ffcv_train.data.image_loader import ImageLoader
from ffcv_train.data.loader import Loader
from ffcv_train.data.memory import available_bytes, check_fits
from ffcv_train.distributed import Process, share_of_cores
from ffcv_train.ema import check_decay
from ffcv_train.errors import UserError
from ffcv_train.losses import CRITERIA
from ffcv_train.models.factory import check_resolution, create_model, pretrained_normalisation
from ffcv_train.models.weights import load_weights
from ffcv_train.normalise import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class BatchSizes:
    """Images per device and forward pass, forward passes per step, and images per step over all devices."""

    per_device: int
    accumulate: int
    global_batch: int


@dataclass(frozen=True)
class DataSets:
    """The opened data sets and what they say about the classes."""

    train: DataSet
    val: DataSet
    num_classes: int
    class_names: tuple[str, ...] | None


def batch_sizes(config: RunConfig, world_size: int) -> BatchSizes:
    """Resolve training.batch_size, training.global_batch_size and training.accumulate."""
    training = config.training
    passes = world_size * training.accumulate
    per_device = training.batch_size
    if training.global_batch_size:
        per_device = training.global_batch_size // passes
    if training.global_batch_size % passes:
        raise UserError(
            f"training.global_batch_size={training.global_batch_size} does not divide into {world_size} devices × "
            f"{training.accumulate} passes; choose a multiple of {passes}"
        )
    if per_device == 1 and (config.augment.mixup or config.augment.cutmix):
        raise UserError(
            "a batch of one image has no partner for Mixup and CutMix; raise --training.batch_size, or set "
            "--augment.mixup=0 --augment.cutmix=0"
        )
    return BatchSizes(per_device, training.accumulate, per_device * passes)


def check_config(config: RunConfig) -> None:
    """Raise `UserError` for options that contradict each other."""
    schedules.check(config.lr, config.resolution, config.training.epochs)
    for name in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.data, name)
        if not 0 < low <= high:
            raise UserError(f"data.{name}={low},{high} must be two positive numbers, the smaller first")
    if bool(config.data.mean) != bool(config.data.std):
        raise UserError("data.mean and data.std belong together; set both or neither")
    if config.data.cache and config.data.format != "zip":
        raise UserError(
            f"data.cache=1 holds zip archives in memory, and data.format is {config.data.format}; set it to 0"
        )
    augment = config.augment
    if (augment.mixup or augment.cutmix) and augment.mix_prob:
        criterion = CRITERIA.get(config.loss.name)
        if criterion is not None and not criterion.takes_soft_targets:
            raise UserError(
                f"loss.name={config.loss.name} is not defined for mixed targets; set --augment.mixup=0 "
                "--augment.cutmix=0, or choose another criterion"
            )
    distill.check(config.distill)


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


def check_length(config: RunConfig, data: DataSets, sizes: BatchSizes) -> int:
    """The steps of an epoch. Raises `UserError` where there are none, or options do not fit so many of this batch."""
    steps = len(data.train) // sizes.global_batch
    if not steps:
        raise UserError(
            f"{data.train.path} has {len(data.train)} samples, fewer than one global batch of {sizes.global_batch}; "
            "lower --training.batch_size"
        )
    check_decay(config.training.ema_decay, config.training.epochs * steps)
    schedules.check_rates(config.lr, scaled_lr(config, sizes))
    return steps


def normalisation(config: RunConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of pixels in [0, 1]: the options', else the weights' own, else ImageNet's."""
    if config.data.mean:
        return config.data.mean, config.data.std
    return pretrained_normalisation(config.model) or (IMAGENET_MEAN, IMAGENET_STD)


def build_model(config: RunConfig, num_classes: int, device: torch.device) -> tuple[nn.Module, str]:
    """The network on `device`, initialised from the seed or model.weights, and what was loaded, in words."""
    torch.manual_seed(config.training.seed)
    model = create_model(config.model, num_classes)
    sides = {schedules.resolution(config.resolution, epoch) for epoch in range(config.training.epochs)}
    for side in sorted(sides | set(config.validation.resolution)):
        check_resolution(model, side, config.model.arch)
    loaded = ""
    if config.model.weights:
        report = load_weights(model, config.model.weights, config.model.arch, blurred=config.model.use_blurpool)
        loaded = str(report)
    memory_format = torch.channels_last if config.model.channels_last else torch.contiguous_format
    return model.to(device, memory_format=memory_format), loaded  # type: ignore[call-overload]


def train_loader(config: RunConfig, data_set: DataSet, sizes: BatchSizes, process: Process) -> Loader | ImageLoader:
    """Random crops and flips in a random order."""
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
            sizes.per_device,
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
        sizes.per_device,
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
    )


def val_loader(config: RunConfig, data_set: DataSet, resolution: int, process: Process) -> Loader | ImageLoader:
    """Centre crops of every sample once."""
    crop = CenterCrop(config.validation.crop_ratio, config.validation.interpolation)
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


def comparable(config: dict[str, Any], *, files_may_move: bool = False) -> dict[str, Any]:
    """The part of a configuration (as `to_dict` gives it) that a resumed run must share with the first one.

    With `files_may_move` paths are not among it, nor is the batch of validation.
    """
    kept = {section: dict(values) for section, values in config.items() if section != "logging"}
    free = {
        "data": ["num_workers", "batches_ahead", "cache"],
        "training": ["resume", "device", "batch_size", "global_batch_size", "accumulate"],
        # Not channels_last: the optimizer's state has the memory format of the weights.
        "model": ["compile"],
        "validation": [],
    }
    if files_may_move:
        free["data"] += ["train_dataset", "val_dataset"]
        free["model"] += ["weights"]
        free["distill"] = ["teacher"]
        free["validation"] += ["batch_size"]
    for section, names in free.items():
        for name in names:
            kept.get(section, {}).pop(name, None)
    return kept


def scaled_lr(config: RunConfig, sizes: BatchSizes) -> float:
    """The peak learning rate for this run's global batch."""
    reference = config.lr.reference_batch
    return config.lr.lr * sizes.global_batch / reference if reference else config.lr.lr
