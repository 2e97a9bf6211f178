"""Classes: do those of two things agree, and what to tell the user where they do not."""

from typing import Protocol

import numpy as np

from ffcv_train.system.errors import UserError


class Labelled(Protocol):
    """What has labels, int64 [N], and can name a sample."""

    @property
    def labels(self) -> np.ndarray: ...

    def describe(self, index: int) -> str: ...


def check_labels(samples: Labelled, num_classes: int) -> None:
    """Raise `UserError` where a label is not in 0 … num_classes − 1."""
    wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= num_classes))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{samples.describe(first)} has the label {samples.labels[first]}, but the model has {num_classes} classes "
            f"(labels 0 … {num_classes - 1}); set --model.num_classes or write the data set anew"
        )
