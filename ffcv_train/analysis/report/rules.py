"""What a log says about what to try next: each rule a function of a run's records, silent where nothing is wrong."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffcv_train.analysis.report.runs import Run

Records = Sequence[Mapping[str, Any]]

DATA_WAIT = 0.05
"""Share of the time that the step waits for data"""
ECE = 0.1
LOSS_SPIKE = 1.25
"""Training loss over the least of the three epochs before"""
TRAIN_GAP = 0.15
"""Top-1 on the training set less that on the validation set"""
LOSS_GAP = 0.5
"""Validation NLL less training loss, in nats"""
SLOWDOWN = 0.85
"""Images/s of the later half of the epochs of one resolution over those of the earlier half"""
FIRST_EPOCH = 0.7
"""Images/s of the first epoch over the others of its resolution"""
STILL_RISING = 0.005
"""Top-1 gained over the last twentieth of the run"""
OVERFIT = 1.05
"""Last validation NLL over the lowest"""
CHANCE = 2.0
"""Top-1 over that of guessing"""


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong."""

    title: str
    evidence: str
    advice: str


def find(run: Run) -> list[Finding]:
    """What every rule finds, the gravest first."""
    records = run.records
    classes = run.params.get("num_classes")
    found = [
        not_finished(records, run.epochs),
        not_finite(records),
        not_learning(records, classes if isinstance(classes, int) else 0),
        loss_spike(records),
        rising_validation_loss(records),
        train_gap(run.measures),
        None if run.measures else loss_gap(records),
        high_ece(records),
        still_rising(records, run.epochs),
        data_wait(records),
        slowing_down(records),
        slow_first_epoch(records),
    ]
    return [finding for finding in found if finding is not None]


def not_finished(records: Records, epochs: int | None) -> Finding | None:
    """Fewer epochs than planned."""
    done = records[-1]["epoch"] + 1
    if epochs is None or done >= epochs:
        return None
    return Finding(
        "Not finished",
        f"{done} of {epochs} epochs",
        "The same command with --training.resume=auto goes on where the run stopped.",
    )


def not_finite(records: Records) -> Finding | None:
    """A training loss that JSON could not say."""
    epochs = [r["epoch"] + 1 for r in records if "train_loss" in r and r["train_loss"] is None]
    if not epochs:
        return None
    return Finding(
        "Loss not finite",
        f"epoch {epochs[0]}",
        "Lower lr.lr, lengthen the warm-up (lr.lr_peak_epoch or lr.warmup_epochs), set training.clip_grad, or use bf16 "
        "instead of fp16.",
    )


def not_learning(records: Records, classes: int) -> Finding | None:
    """The last top-1 is below `CHANCE` times guessing, after three epochs or more."""
    last = _validated(records)[-1:]
    if not last or classes < 3 or last[0]["epoch"] < 2 or last[0]["top_1"] >= CHANCE / classes:
        return None
    return Finding(
        "Not learning",
        f"top-1 {last[0]['top_1']:.2%}, and guessing gives {1 / classes:.2%}",
        "Check that the labels belong to the images (ffcv-train write --verify checks the file), then try a tenth of "
        "lr.lr.",
    )


def loss_spike(records: Records) -> Finding | None:
    """A training loss above `LOSS_SPIKE` times the least of the three epochs before it."""
    series = _series(records, "train_loss")
    found = []
    for i in range(1, len(series)):
        before = min(value for _, value in series[max(0, i - 3) : i])
        if before > 0 and series[i][1] > LOSS_SPIKE * before:
            found.append((series[i][0] + 1, before, series[i][1]))
    if not found:
        return None
    epoch, before, value = max(found, key=lambda spike: spike[2] / spike[1])
    return Finding(
        "Loss spike",
        f"training loss {before:.3f} → {value:.3f} at epoch {epoch}",
        "Lower lr.lr, lengthen the warm-up, or set training.clip_grad=1.",
    )


def rising_validation_loss(records: Records) -> Finding | None:
    """Validation NLL is `OVERFIT` times its lowest, which lies a tenth of the epochs back; training loss fell since."""
    series = _series(records, "nll")
    if len(series) < 3:
        return None
    epoch, lowest = min(series, key=lambda point: point[1])
    last_epoch, last = series[-1]
    losses = dict(_series(records, "train_loss"))
    if last <= OVERFIT * lowest or last_epoch - epoch < 0.1 * (last_epoch + 1):
        return None
    if not losses.get(last_epoch, math.inf) < losses.get(epoch, -math.inf):
        return None
    return Finding(
        "Validation loss rises while training loss falls",
        f"NLL {lowest:.3f} at epoch {epoch + 1}, {last:.3f} at epoch {last_epoch + 1}; training loss "
        f"{losses[epoch]:.3f} → {losses[last_epoch]:.3f}",
        "The network overfits: fewer epochs, more augmentation (data.crop_scale, augment), more training.weight_decay, "
        "or a criterion that regularises (maxsup, ls).",
    )


def train_gap(measures: Mapping[str, Any]) -> Finding | None:
    """Top-1 on the training set, both on centre crops, exceeds that on the validation set by `TRAIN_GAP`."""
    try:
        train, val = float(measures["train"]["top_1"]), float(measures["single"]["top_1"])
    except (KeyError, TypeError, ValueError):
        return None
    if train - val <= TRAIN_GAP:
        return None
    return Finding(
        "Gap between training and validation set",
        f"top-1 {train:.1%} and {val:.1%}",
        "More data, more augmentation, more training.weight_decay, or a smaller network.",
    )


def loss_gap(records: Records) -> Finding | None:
    """The last validation NLL exceeds that epoch's training loss by `LOSS_GAP`.

    Penalties and augmentation only raise the training loss, so that the true gap is larger.
    """
    losses, series = dict(_series(records, "train_loss")), _series(records, "nll")
    if not series or series[-1][0] not in losses:
        return None
    epoch, nll = series[-1]
    if nll - losses[epoch] <= LOSS_GAP:
        return None
    return Finding(
        "Gap between training and validation loss",
        f"training loss {losses[epoch]:.3f}, validation NLL {nll:.3f}",
        "More data, more augmentation, more training.weight_decay, or a smaller network.",
    )


def high_ece(records: Records) -> Finding | None:
    """The last calibration error is above `ECE`."""
    series = _series(records, "ece")
    if not series or series[-1][1] <= ECE:
        return None
    return Finding(
        "Poor calibration",
        f"ECE {series[-1][1]:.3f}",
        "The reliability diagram (ffcv-train eval --output RUN/metrics.json) tells whether confidence is too "
        "high (a stronger penalty or fewer epochs help) or too low (a weaker penalty: loss.alpha_start, "
        "loss.alpha_end). Dividing the logits by a temperature fitted on held-out data mends either.",
    )


def still_rising(records: Records, epochs: int | None) -> Finding | None:
    """A finished run whose top-1 gained `STILL_RISING` over its last twentieth, by its last two validations."""
    series = _series(records, "top_1")
    if epochs is None or len(series) < 2 or records[-1]["epoch"] + 1 < epochs:
        return None
    (before, first), (after, last) = series[-2:]
    # Far apart, they say nothing about the end.
    if after - before > max(1, 0.2 * epochs):
        return None
    gain = (last - first) / (after - before) * 0.05 * epochs
    if gain <= STILL_RISING:
        return None
    return Finding(
        "Top-1 still rises at the end",
        f"{first:.2%} after epoch {before + 1}, {last:.2%} after epoch {after + 1}",
        "More training.epochs should give more.",
    )


def data_wait(records: Records) -> Finding | None:
    """The step waits for data `DATA_WAIT` of the time, as the mean of the epochs after the first."""
    series = _series(records, "data_wait")
    values = [value for _, value in series[1:] or series]
    if not values or (share := statistics.fmean(values)) <= DATA_WAIT:
        return None
    return Finding(
        "Waiting for data",
        f"{share:.0%} of the time",
        "python -m ffcv_train doctor tells what limits the loader: more data.num_workers, a .beton of smaller or raw "
        "images, data.dct_scaling=1, or a lower resolution.min_res.",
    )


def slowing_down(records: Records) -> Finding | None:
    """At the resolution of most epochs, the later half ran at less than `SLOWDOWN` of the speed of the earlier half."""
    by_side = _speeds(records[1:])
    if not by_side:
        return None
    side, speeds = max(by_side.items(), key=lambda item: len(item[1]))
    if len(speeds) < 4:
        return None
    half = len(speeds) // 2
    early, late = statistics.median(speeds[:half]), statistics.median(speeds[half:])
    if late >= SLOWDOWN * early:
        return None
    return Finding(
        "Throughput falls",
        f"{early:,.0f} → {late:,.0f} images/s at {side} px",
        "Look for other programs on the machine, for throttling of a hot device, and for a page cache that lost the "
        ".beton file.",
    )


def slow_first_epoch(records: Records) -> Finding | None:
    """The first epoch ran at less than `FIRST_EPOCH` of the median speed of the others at its resolution."""
    first = records[0]
    others = _speeds(records[1:]).get(first.get("resolution"), [])
    speed = first.get("images_per_s")
    if first["epoch"] != 0 or speed is None or len(others) < 2 or speed >= FIRST_EPOCH * statistics.median(others):
        return None
    return Finding(
        "Slow first epoch",
        f"{speed:,.0f} images/s, later {statistics.median(others):,.0f} at {first.get('resolution')} px",
        "The .beton file was read from the disk: cat it to /dev/null before the run, or keep it on a faster disk.",
    )


def _series(records: Records, key: str) -> list[tuple[int, float]]:
    """(epoch, value) where the value is a number."""
    return [(r["epoch"], float(r[key])) for r in records if isinstance(r.get(key), int | float)]


def _validated(records: Records) -> list[Mapping[str, Any]]:
    return [record for record in records if isinstance(record.get("top_1"), int | float)]


def _speeds(records: Records) -> dict[Any, list[float]]:
    """Images/s by resolution, in order."""
    found: dict[Any, list[float]] = {}
    for record in records:
        if isinstance(record.get("images_per_s"), int | float):
            found.setdefault(record.get("resolution"), []).append(float(record["images_per_s"]))
    return found
