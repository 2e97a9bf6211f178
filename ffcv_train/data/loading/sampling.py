"""Which training samples are drawn how often: data.subset and data.sampling."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ffcv_train.system.errors import UserError

RULES = ("uniform", "class_balanced")


def sampling_weights(sampling: str, subset: str, labels: np.ndarray) -> np.ndarray | None:
    """The weight of each sample (float64 [N], 0: never drawn) under the options; None where each is drawn once.

    `sampling` is one of `RULES` or a file of a weight per sample, `subset` a file of sample numbers or empty; `labels`:
    int64 [N]. Raises `UserError` for files that do not fit.
    """
    if sampling == "uniform" and not subset:
        return None
    weights = np.ones(len(labels))
    if sampling == "class_balanced":
        chosen = slice(None) if not subset else read_subset(subset, len(labels))
        counts = np.bincount(labels[chosen])
        weights[:] = 0
        weights[chosen] = (1.0 / np.maximum(counts, 1))[labels[chosen]]
        return weights
    if sampling != "uniform":
        weights = read_weights(sampling, len(labels))
    if subset:
        chosen = np.zeros(len(labels), bool)
        chosen[read_subset(subset, len(labels))] = True
        weights = np.where(chosen, weights, 0.0)
        if not weights.any():
            raise UserError(f"no sample of data.subset={subset} has a weight above 0 in data.sampling={sampling}")
    return weights


def read_subset(file: str, num_samples: int) -> np.ndarray:
    """The sample numbers (int64 [M], sorted) that stand in `file`, one per line, from 0; raises `UserError`."""
    line_of = np.zeros(num_samples, np.int64)  # lines count from 1
    for line, text in _lines(file, "data.subset"):
        if not (text.isascii() and text.isdigit()) or int(text) >= num_samples:
            raise UserError(
                f"data.subset={file}: line {line} is {text[:40]!r}, and the samples are numbered 0 to {num_samples - 1}"
            )
        if line_of[int(text)]:
            raise UserError(
                f"data.subset={file}: sample {text} stands in lines {line_of[int(text)]} and {line}; a sample is in a "
                "subset once, and data.sampling=FILE gives it a weight"
            )
        line_of[int(text)] = line
    return np.flatnonzero(line_of)


def read_weights(file: str, num_samples: int) -> np.ndarray:
    """The weights (float64 [N]) that stand in `file`, one per line in the order of the samples; raises `UserError`."""
    if not Path(file).is_file():
        raise UserError(
            f"data.sampling={file} is neither {' nor '.join(RULES)} nor a file; a file has a weight per sample, "
            "each on a line"
        )
    weights = array("d")
    for line, text in _lines(file, "data.sampling"):
        try:
            weights.append(float(text))
        except ValueError:
            weights.append(-1.0)
        if not 0 <= weights[-1] < np.inf:
            raise UserError(f"data.sampling={file}: line {line} is {text[:40]!r}; a weight is a number of at least 0")
    if len(weights) != num_samples:
        raise UserError(f"data.sampling={file} has {len(weights)} weights, and there are {num_samples} samples")
    found = np.array(weights)
    if not found.any():
        raise UserError(f"data.sampling={file}: all weights are 0; give some sample one above")
    return found


def describe_sampling(weights: np.ndarray, labels: np.ndarray) -> str:
    """What `weights` (float64 [N]) make of an epoch, in words."""
    draws = int(np.count_nonzero(weights))
    of_classes = np.bincount(labels, weights)
    shares = of_classes[of_classes > 0] / weights.sum() * draws
    most = weights.max() / weights.sum() * draws
    low, high = shares.min(), shares.max()
    spread = f"{low:,.0f}" if high - low < 1 else f"{low:,.0f} to {high:,.0f}"
    times = int(np.ceil(most - 1e-9))
    often = "once" if times == 1 else f"{times:,} times"
    return (
        f"an epoch draws {draws:,} of {len(labels):,} samples, about {spread} of each class, a sample at most {often}"
    )


def _lines(file: str, option: str) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers; one after the other, for there may be millions."""
    empty = True
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    empty = False
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}={file} cannot be read: {error}") from None
    if empty:
        raise UserError(f"{option}={file} holds nothing; leave the option out to train on all samples alike")
