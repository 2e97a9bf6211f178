"""Errors under corruptions in short: means, and the mean corruption error of ImageNet-C."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# AlexNet's error, mean over severities, from the authors' repository (hendrycks/robustness).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def summarise_corruptions(found: Mapping[str, Sequence[Mapping[str, Any]]], imagenet: bool) -> dict[str, Any]:
    """Means of `error`, `nll` and `ece` over all corruptions and severities and by severity, and `mce`.

    `found` has for each corruption what `MetricSums.compute` said at severities 1 to 5. `mce` is the mean over the 15
    corruptions of the error over AlexNet's, 1 being as bad (arXiv:1903.12261); None unless all are there and the
    classes are ImageNet's.
    """
    rows = {
        name: [{"error": 1 - one["top_1"], "nll": one["nll"], "ece": one["ece"]} for one in severities]
        for name, severities in found.items()
    }
    everything = [one for severities in rows.values() for one in severities]
    mce = None
    if imagenet and set(rows) == set(ALEXNET):
        mce = math.fsum(
            statistics.fmean(one["error"] for one in rows[name]) / error for name, error in ALEXNET.items()
        ) / len(ALEXNET)
    return {
        "corruptions": rows,
        "mean": _means(everything),
        "by_severity": [_means(list(at)) for at in zip(*rows.values(), strict=True)],
        "mce": mce,
    }


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(row[key] for row in rows) for key in ("error", "nll", "ece")}
