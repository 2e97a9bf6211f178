"""Training criteria: a file each, and the registry by which `loss.name` finds them."""

import dataclasses
import difflib
import inspect
from collections.abc import Sequence

from ffcv_train.config.schema import LossConfig
from ffcv_train.losses.balanced_softmax import BalancedSoftmax
from ffcv_train.losses.base import Criterion
from ffcv_train.losses.bce import BinaryCrossEntropy
from ffcv_train.losses.cross_entropy import CrossEntropy
from ffcv_train.losses.error_amplification_only import ErrorAmplificationOnly
from ffcv_train.losses.focal import Focal
from ffcv_train.losses.label_smoothing import LabelSmoothing
from ffcv_train.losses.ldam import Ldam
from ffcv_train.losses.logit_penalty import LogitPenalty
from ffcv_train.losses.maxsup import MaxSup
from ffcv_train.losses.online_label_smoothing import OnlineLabelSmoothing
from ffcv_train.losses.regularization_only import RegularizationOnly
from ffcv_train.losses.weighted_ce import WeightedCrossEntropy
from ffcv_train.losses.zipf import Zipf
from ffcv_train.system.errors import UserError

CRITERIA: dict[str, type[Criterion]] = {
    "ce": CrossEntropy,
    "ls": LabelSmoothing,
    "maxsup": MaxSup,
    "logit_penalty": LogitPenalty,
    "ols": OnlineLabelSmoothing,
    "zipf": Zipf,
    "focal": Focal,
    "bce": BinaryCrossEntropy,
    "weighted_ce": WeightedCrossEntropy,
    "balanced_softmax": BalancedSoftmax,
    "ldam": Ldam,
    "regularization_only": RegularizationOnly,
    "error_amplification_only": ErrorAmplificationOnly,
}


def create_criterion(
    config: LossConfig, num_classes: int, epochs: int, class_counts: Sequence[int] | None = None
) -> Criterion:
    """The criterion `config.name` of a run of `epochs` epochs, on the CPU.

    A constructor receives the `LossConfig` fields, `num_classes`, `epochs` and `class_counts`, training samples of each
    class, that it names as arguments; the other hyperparameters are ignored. Raises `UserError` for a name that is not
    in `CRITERIA`, and `ValueError` for one that needs `class_counts` where there are none.
    """
    if config.name not in CRITERIA:
        near = difflib.get_close_matches(config.name, CRITERIA, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise UserError(f"loss.name={config.name} is no criterion{hint}; there are {', '.join(CRITERIA)}")
    available = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    available |= {"num_classes": num_classes, "epochs": epochs, "class_counts": class_counts}
    criterion = CRITERIA[config.name]
    names = inspect.signature(criterion).parameters
    if class_counts is None and "class_counts" in names:
        raise ValueError(f"loss.name={config.name} needs class_counts, the training samples of each class")
    return criterion(**{name: value for name, value in available.items() if name in names})
