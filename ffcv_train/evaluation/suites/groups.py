"""`groups`: accuracy of classes that were seen often, now and then, and seldom."""

from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.data.open import DataSet
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions, open_with_classes_of, trained_on
from ffcv_train.metrics.groups import group_accuracy
from ffcv_train.system.errors import UserError


def check(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where the training set is not known or has other classes."""
    if not options.train_set:
        raise UserError(
            "--suite groups counts the classes of the training set, and the checkpoint names none; give it with "
            "--train-set FILE"
        )
    if not Path(options.train_set).exists():
        raise UserError(
            f"--suite groups counts the classes of the training set {options.train_set}, which does not exist; give "
            "it with --train-set FILE"
        )
    trained_on(options, open_with_classes_of(data_set, options.train_set, num_classes, options.classes))


def run(examined: Examined) -> dict[str, Any]:
    """What `group_accuracy` says, with the classes' names."""
    options, num_classes = examined.options, examined.network.num_classes
    train = open_with_classes_of(examined.data_set, options.train_set, num_classes, options.classes)
    samples = trained_on(options, train)
    found = group_accuracy(
        examined.outputs.correct.numpy(),
        examined.outputs.labels.numpy(),
        np.bincount(train.labels[samples], minlength=num_classes).tolist(),
        many_over=options.many_over,
        few_under=options.few_under,
    )
    names = examined.class_names or ()
    for record in found["classes"]:
        record["name"] = names[record["label"]] if record["label"] < len(names) else None
    return {"train_set": str(train.path), "train_samples": len(samples), **found}
