"""`calibration`: do probabilities mean what they say, without and with a temperature fitted on other samples?"""

from typing import Any

import numpy as np

from ffcv_train.data.format.beton import Beton
from ffcv_train.data.open import DataSet
from ffcv_train.data.sources.archives import Blob
from ffcv_train.evaluation.collect import collect
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions, open_with_classes_of
from ffcv_train.metrics.temperature import calibration, fit_temperature, split_halves
from ffcv_train.models.checkpoint import save_checkpoint
from ffcv_train.models.opening import Checkpoint
from ffcv_train.system.errors import UserError


def check(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where the temperature cannot be fitted."""
    if options.calibrate_on:
        other = open_with_classes_of(data_set, options.calibrate_on, num_classes, options.classes)
        if _are_the_same(other, data_set):
            raise UserError(
                f"--calibrate-on {options.calibrate_on} is the validation set itself, and a temperature is not "
                "measured on what it was fitted to; give other samples, or leave it out to fit on one half and "
                "measure the other"
            )
    elif len(data_set) < 2:
        raise UserError(f"{data_set.path} has one sample, too few to fit a temperature to; give --calibrate-on FILE")


def _are_the_same(one: DataSet, other: DataSet) -> bool:
    """Whether two data sets hold the same samples: digests do not read images, so some are compared."""
    if one.path.resolve() == other.path.resolve():
        return True
    if len(one) != len(other) or one.digest() != other.digest():
        return False
    some = np.unique(np.linspace(0, len(one) - 1, 8).astype(np.int64)).tolist()
    return all(_stored(one, index) == _stored(other, index) for index in some)


def _stored(data_set: DataSet, index: int) -> bytes:
    if isinstance(data_set, Beton):
        return Blob(str(data_set.path), int(data_set.ptrs[index]), int(data_set.sizes[index])).read()
    place = data_set.source.place(index)
    return place.tobytes() if isinstance(place, np.ndarray) else place.read()


def run(examined: Examined) -> dict[str, Any]:
    """`temperature`, what it was fitted on, and the metrics of the other samples `before` and `after`."""
    options, outputs = examined.options, examined.outputs
    logits, labels = outputs.logits, outputs.labels
    if options.calibrate_on:
        other = open_with_classes_of(
            examined.data_set, options.calibrate_on, examined.network.num_classes, options.classes
        )
        fitted = collect(
            examined.network, examined.config, other, examined.process, None, f"calibration on {other.path.name}"
        )
        fit_logits, fit_labels = fitted.logits, fitted.labels
        source = {"data_set": str(other.path), "samples": len(other), "split_seed": None}
    else:
        first, second = split_halves(len(labels), options.split_seed)
        fit_logits, fit_labels = logits[first], labels[first]
        logits, labels = logits[second], labels[second]
        source = {"data_set": str(examined.data_set.path), "samples": len(first), "split_seed": options.split_seed}
    found = fit_temperature(fit_logits, fit_labels)
    return {
        "temperature": found.value,
        "at_edge": found.at_edge,
        "fitted_on": source,
        "samples": len(labels),
        "before": calibration(logits, labels),
        "after": calibration(logits, labels, found.value),
    }


def keep(checkpoint: Checkpoint, weights: str, found: dict[str, Any]) -> None:
    """Write what `run` found into `checkpoint`, one of ours, whose `weights` it belongs to.

    Raises `UserError` where another file lies there by now.
    """
    checkpoint.check_unchanged()
    kept = {"value": found["temperature"], "weights": weights, "fitted_on": found["fitted_on"]}
    save_checkpoint({**checkpoint.content, "temperature": kept}, checkpoint.path)
