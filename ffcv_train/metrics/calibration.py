"""Calibration: how often predictions of a confidence are right, from what an evaluation wrote."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json


@dataclass(frozen=True)
class Calibration:
    """One curve of a reliability diagram; the arrays have an entry per bin, NaN where the bin is empty."""

    label: str
    setting: str
    """What was evaluated, such as "10,000 samples at 224 px, flip-averaged" """
    top_1: float
    nll: float
    ece: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def read_calibration(
    path: str | Path, *, label: str = "", resolution: int | None = None, flip_averaged: bool = False
) -> Calibration:
    """One result of a metrics file: that of `resolution`, the first where that is None.

    `label` is the curve's name, the checkpoint's folder where it is empty. Raises `UserError` where the file is no
    metrics file or lacks the result.
    """
    path = Path(path)
    try:
        report = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give what ffcv-train eval --output wrote") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; give what ffcv-train eval --output wrote") from None
    try:
        results = {int(result["resolution"]): result for result in report["results"]}
        resolution = next(iter(results)) if resolution is None else resolution
        if resolution not in results:
            known = ", ".join(map(str, results))
            raise UserError(f"{path} has no result at {resolution} px, only at {known}; evaluate at that side as well")
        result = results[resolution]
        if flip_averaged and "flip_averaged" not in result:
            raise UserError(f"{path} has no flip-averaged result; evaluate with --validation.lr_tta=1")
        setting = f"{result['count']:,} samples at {resolution} px{', flip-averaged' if flip_averaged else ''}"
        metrics = result["flip_averaged"] if flip_averaged else result
        return calibration_of(metrics, label or _default_label(report), setting)
    except (KeyError, TypeError, ValueError, OverflowError, StopIteration, AttributeError):
        raise UserError(f"{path} is not a metrics file; give what ffcv-train eval --output wrote") from None


def wilson_interval(hits: np.ndarray, counts: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the score interval (Wilson 1927) of the share hits / counts; NaN where counts is 0.

    `z` is the normal quantile: 1.96 for 95%. Unlike p ± z √(p(1−p)/n), it has a width where all or none are hits.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        n = counts.astype(np.float64)
        share = hits / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # The ends are exactly 0 and 1 at no and all hits; rounding must not put the share itself outside.
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def calibration_of(metrics: dict[str, Any], label: str, setting: str) -> Calibration:
    """The curve of what `MetricSums.compute` said, as it is or as JSON gave it. Raises `ValueError`, `KeyError`."""
    bins = metrics["bins"]
    # JSON says null for the mean of an empty bin and for what is not finite; float64 says NaN for both.
    counts = np.array(bins["count"], dtype=np.int64)
    confidence, accuracy = (np.array(bins[key], dtype=np.float64) for key in ("confidence", "accuracy"))
    if not counts.ndim == 1 <= len(counts) == len(confidence) == len(accuracy) or counts.sum() != metrics["count"]:
        raise ValueError("bins do not fit")
    top_1, nll, ece = (math.nan if metrics[key] is None else float(metrics[key]) for key in ("top_1", "nll", "ece"))
    return Calibration(label, setting, top_1, nll, ece, counts, confidence, accuracy)


def _default_label(report: dict[str, Any]) -> str:
    checkpoint = Path(report["checkpoint"])
    return checkpoint.parent.name or checkpoint.stem
