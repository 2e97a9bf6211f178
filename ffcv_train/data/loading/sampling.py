"""Which training samples are drawn how often: data.subset and data.sampling."""

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
        weights = np.zeros(len(labels))
        chosen = np.arange(len(labels)) if not subset else read_subset(subset, len(labels))
        counts = np.bincount(labels[chosen])
        weights[chosen] = 1.0 / counts[labels[chosen]]
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
    numbers = _lines(file, "data.subset")
    seen: dict[int, int] = {}
    for line, text in numbers:
        if not (text.isascii() and text.isdigit()) or int(text) >= num_samples:
            raise UserError(
                f"data.subset={file}: line {line} is {text[:40]!r}, and the samples are numbered 0 to {num_samples - 1}"
            )
        if int(text) in seen:
            raise UserError(
                f"data.subset={file}: sample {text} stands in lines {seen[int(text)]} and {line}; a sample is in a "
                "subset once, and data.sampling=FILE gives it a weight"
            )
        seen[int(text)] = line
    return np.array(sorted(seen), np.int64)


def read_weights(file: str, num_samples: int) -> np.ndarray:
    """The weights (float64 [N]) that stand in `file`, one per line in the order of the samples; raises `UserError`."""
    if not Path(file).is_file():
        raise UserError(
            f"data.sampling={file} is neither {' nor '.join(RULES)} nor a file; a file has a weight per sample, "
            "each on a line"
        )
    weights = []
    for line, text in _lines(file, "data.sampling"):
        try:
            weights.append(float(text))
        except ValueError:
            weights.append(-1.0)
        if not 0 <= weights[-1] < np.inf:
            raise UserError(f"data.sampling={file}: line {line} is {text[:40]!r}; a weight is a number of at least 0")
    if len(weights) != num_samples:
        raise UserError(f"data.sampling={file} has {len(weights)} weights, and there are {num_samples} samples")
    if not any(weights):
        raise UserError(f"data.sampling={file}: all weights are 0; give some sample one above")
    return np.array(weights)


def describe_sampling(weights: np.ndarray, labels: np.ndarray) -> str:
    """What `weights` (float64 [N]) make of an epoch, in words."""
    draws = int(np.count_nonzero(weights))
    shares = np.bincount(labels, weights)[np.unique(labels[weights > 0])] / weights.sum() * draws
    most = weights.max() / weights.sum() * draws
    low, high = shares.min(), shares.max()
    spread = f"{low:,.0f}" if high - low < 1 else f"{low:,.0f} to {high:,.0f}"
    times = int(np.ceil(most - 1e-9))
    often = "once" if times == 1 else f"{times:,} times"
    return (
        f"an epoch draws {draws:,} of {len(labels):,} samples, about {spread} of each class, a sample at most {often}"
    )


def _lines(file: str, option: str) -> list[tuple[int, str]]:
    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}={file} cannot be read: {error}") from None
    found = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not found:
        raise UserError(f"{option}={file} holds nothing; leave the option out to train on all samples alike")
    return found
