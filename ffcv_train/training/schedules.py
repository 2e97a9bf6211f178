"""What changes during training, as pure functions of progress: learning rate, image side, penalty weight.

Progress is counted in epochs from 0; `epoch` may be fractional where a function says so.
"""

import bisect
import math

import numpy as np

from ffcv_train.config.schema import LrConfig, ResolutionConfig
from ffcv_train.system.errors import UserError

# Rate at the very start, as a share of the peak: FFCV's figure for `cyclic`, taken over for warm-up.
START_SHARE = 1e-4


def learning_rate(config: LrConfig, peak_lr: float, epochs: int, epoch: float) -> float:
    """The learning rate at a point of the run.

    `peak_lr` is the highest rate, already scaled to the batch (`config.lr` itself is not read); `epochs` is the
    length of the run; `epoch` is progress in [0, epochs], evaluated per step at (epoch index) + step / steps.

    - `cyclic`: linear from 1e-4 x peak at epoch 0 to the peak at `lr_peak_epoch`, linear to 0 at `epochs`. FFCV's
      ImageNet script takes the rate at both ends of an epoch and goes linearly in between; on this piecewise linear
      function with a whole `lr_peak_epoch` that is the same, step for step.
    - `cosine`: after warm-up, half a cosine from the peak at `warmup_epochs` to `min_lr` at `epochs`. With
      `cosine_start` "zero", as in timm, the cosine begins at epoch 0, and warm-up to the peak takes the place of its
      first epochs.
    - `step`: the peak times `step_ratio` per step passed. Steps lie at the multiples of `step_length`, or at
      `step_epochs` where they are given, and are abrupt (FFCV's script slides to the next value over the epoch
      before each step, and to 0 over the last one).

    Warm-up (`cosine`, `step`) is linear over `warmup_epochs`, from `warmup_lr`, or from 1e-4 x the value that it joins.
    """
    if config.lr_schedule_type == "cyclic":
        rising = epoch < config.lr_peak_epoch
        span = config.lr_peak_epoch if rising else epochs - config.lr_peak_epoch
        if rising:
            return peak_lr * (START_SHARE + (1 - START_SHARE) * max(epoch, 0.0) / span)
        return peak_lr * max(epochs - epoch, 0.0) / span if span > 0 else peak_lr
    warmup = config.warmup_epochs
    if config.lr_schedule_type == "cosine":
        start = warmup if config.cosine_start == "warmup" or epoch < warmup else 0.0
        span = epochs - start
        progress = min(max(epoch - start, 0.0) / span, 1.0) if span > 0 else 0.0
        rate = config.min_lr + (peak_lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        rate = peak_lr * config.step_ratio ** _steps_passed(config, epoch)
    if epoch < warmup:
        lowest = config.warmup_lr or START_SHARE * rate
        rate = lowest + (rate - lowest) * max(epoch, 0.0) / warmup
    return rate


def resolution(config: ResolutionConfig, epoch: int) -> int:
    """The side of training images in pixels during epoch `epoch` (FFCV's progressive resizing).

    `min_res` up to and including epoch `start_ramp`, `max_res` from `end_ramp` on, in between the linear
    interpolation rounded to the nearest multiple of `step`, ties to the even multiple. Where a ramp of no length
    says both (`epoch == start_ramp == end_ramp`), `min_res` wins.
    """
    if epoch <= config.start_ramp:
        return config.min_res
    if epoch >= config.end_ramp:
        return config.max_res
    # np.interp, as in FFCV's script, so that rounding falls to the same side there and here.
    side = np.interp(epoch, [config.start_ramp, config.end_ramp], [config.min_res, config.max_res])
    return int(np.round(side / config.step)) * config.step


def sides(config: ResolutionConfig, epochs: int) -> set[int]:
    """Every side, in pixels, that a run of so many epochs trains at."""
    return {resolution(config, epoch) for epoch in range(epochs)}


def check(lr: LrConfig, resolution: ResolutionConfig, epochs: int) -> None:
    """Raise `UserError` where the options contradict each other or the number of epochs.

    Options of schedules that were not chosen are not looked at.
    """
    kind = lr.lr_schedule_type
    if kind == "cyclic" and lr.lr_peak_epoch > epochs:
        raise UserError(
            f"lr.lr_peak_epoch={lr.lr_peak_epoch:g} lies beyond training.epochs={epochs}; "
            f"set it to at most {epochs}, or train longer"
        )
    if kind != "cyclic" and lr.warmup_epochs > epochs:
        raise UserError(
            f"lr.warmup_epochs={lr.warmup_epochs:g} is longer than training.epochs={epochs}; "
            f"set it to at most {epochs}, or train longer"
        )
    if not lr.reference_batch:
        check_rates(lr, lr.lr)
    if kind == "step" and any(a >= b for a, b in zip(lr.step_epochs, lr.step_epochs[1:], strict=False)):
        listed = ",".join(map(str, lr.step_epochs))
        raise UserError(f"lr.step_epochs={listed} must increase from each epoch to the next")
    _check_resolution(resolution)


def check_rates(lr: LrConfig, peak: float) -> None:
    """Raise `UserError` where a schedule would end or start above `peak`, the rate for this run's global batch."""
    if lr.lr_schedule_type == "cyclic":
        return
    what = f"lr.lr={lr.lr:g}" + (f", which is {peak:.3g} for this run's global batch" if lr.reference_batch else "")
    if lr.lr_schedule_type == "cosine" and lr.min_lr > peak:
        raise UserError(f"lr.min_lr={lr.min_lr:g} is above {what}; cosine falls from lr.lr to lr.min_lr")
    if lr.warmup_epochs and lr.warmup_lr > peak:
        raise UserError(f"lr.warmup_lr={lr.warmup_lr:g} is above {what}; the warm-up rises from lr.warmup_lr to lr.lr")


def _steps_passed(config: LrConfig, epoch: float) -> int:
    if config.step_epochs:
        return bisect.bisect_right(config.step_epochs, epoch)
    return int(epoch // config.step_length)


def _check_resolution(config: ResolutionConfig) -> None:
    if config.min_res > config.max_res:
        raise UserError(
            f"resolution.min_res={config.min_res} is above resolution.max_res={config.max_res}; "
            "set both, the side grows during training"
        )
    if config.min_res == config.max_res:
        return  # one side throughout may be any
    if config.start_ramp > config.end_ramp:
        raise UserError(
            f"resolution.start_ramp={config.start_ramp} lies after resolution.end_ramp={config.end_ramp}; swap them"
        )
    for name in ("min_res", "max_res"):
        side = getattr(config, name)
        if side % config.step:
            raise UserError(
                f"resolution.{name}={side} is not a multiple of resolution.step={config.step}; "
                "change either (small images want a step of 4 or 8)"
            )
