"""From a configuration to the parts of a run, every check before the first step."""

from dataclasses import dataclass

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSets
from ffcv_train.losses import CRITERIA
from ffcv_train.system.errors import UserError
from ffcv_train.training import distill, finetune, schedules
from ffcv_train.training.ema import check_decay
from ffcv_train.training.trackers import check_tracker


@dataclass(frozen=True)
class BatchSizes:
    """Images per device and forward pass, forward passes per step, and images per step over all devices."""

    per_device: int
    accumulate: int
    global_batch: int


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
    if config.model.compile_mode != "default":
        if not config.model.compile:
            raise UserError(
                f"model.compile_mode={config.model.compile_mode} has no use without model.compile; set it to 1 as well"
            )
        if config.training.accumulate > 1:
            # pytorch/pytorch#169545 and #96693: a graph's gradients lie where its next replay writes.
            raise UserError(
                f"model.compile_mode=reduce-overhead loses gradients with training.accumulate="
                f"{config.training.accumulate}, for PyTorch's CUDA graphs write them all to one place; set one of them "
                "back"
            )
    if config.data.decode == "device":
        if config.data.format != "beton":
            raise UserError(
                f"data.decode=device is for .beton files, and data.format is {config.data.format}; use "
                "--data.decode=host, or convert the images with ffcv-train write"
            )
        if config.data.dct_scaling:
            raise UserError(
                "data.dct_scaling=1 is the host's decoder's, and data.decode is device; set one of them back"
            )
    augment = config.augment
    if (augment.mixup or augment.cutmix) and augment.mix_prob:
        criterion = CRITERIA.get(config.loss.name)
        if criterion is not None and not criterion.takes_soft_targets:
            raise UserError(
                f"loss.name={config.loss.name} is not defined for mixed targets; set --augment.mixup=0 "
                "--augment.cutmix=0, or choose another criterion"
            )
    if config.model.compile and config.model.grad_checkpointing:
        raise UserError(
            "model.compile=1 and model.grad_checkpointing=1 do not go together: a compiled network chooses by itself "
            "what is computed again; set one of them to 0"
        )
    check_tracker(config.logging.tracker)
    distill.check(config.distill)
    finetune.check(config.finetune, config.model.weights)


def check_length(config: RunConfig, data: DataSets, sizes: BatchSizes) -> int:
    """The steps of an epoch. Raises `UserError` where there are none, or options do not fit so many of this batch."""
    steps = data.samples // sizes.global_batch
    if not steps:
        raise UserError(
            f"{data.train.path} has {data.samples} samples, fewer than one global batch of {sizes.global_batch}; "
            "lower --training.batch_size"
        )
    check_decay(config.training.ema_decay, config.training.epochs * steps)
    schedules.check_rates(config.lr, scaled_lr(config, sizes))
    return steps


def scaled_lr(config: RunConfig, sizes: BatchSizes) -> float:
    """The peak learning rate for this run's global batch."""
    reference = config.lr.reference_batch
    return config.lr.lr * sizes.global_batch / reference if reference else config.lr.lr


def validation_is_due(config: RunConfig, epoch: int) -> bool:
    """Whether the network is evaluated after epoch `epoch` (from 0)."""
    return epoch + 1 == config.training.epochs or (epoch + 1) % config.validation.every == 0
