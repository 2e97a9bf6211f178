"""What suites are asked to do, and of what."""

from dataclasses import dataclass, field

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import check_labels
from ffcv_train.data.open import DataSet
from ffcv_train.evaluation.collect import Collected
from ffcv_train.metrics.groups import FEW_UNDER, MANY_OVER
from ffcv_train.models.inspect.last_layer import LastLayer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class SuiteOptions:
    """Which suites, and their options."""

    suites: tuple[str, ...] = ()
    calibrate_on: str = ""
    """calibration: a data set that the temperature is fitted to; empty: half of the validation set"""
    split_seed: int = 0
    """calibration: of the halves"""
    train_set: str = ""
    """groups, ood: the training set, whose class counts and features are meant"""
    many_over: int = MANY_OVER
    few_under: int = FEW_UNDER
    ood_data: tuple[str, ...] = ()
    neighbour: int = 50
    """ood: which of the nearest training samples says how near a sample is"""


@dataclass(frozen=True, eq=False)
class Examined:
    """A network, and what it makes of the validation set."""

    network: Network
    config: RunConfig
    process: Process
    data_set: DataSet
    outputs: Collected
    class_names: tuple[str, ...] | None = None
    layer: LastLayer | None = None
    options: SuiteOptions = field(default_factory=SuiteOptions)


def check_same_classes(other: DataSet, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where `other` has labels that are none of the network's, or other names for them."""
    check_labels(other, num_classes)
    names, known = other.class_names, data_set.class_names
    if names is None or known is None:
        return
    for label, (name, expected) in enumerate(zip(names, known, strict=False)):
        if name != expected:
            raise UserError(
                f"{other.path} calls label {label} {name!r}, {data_set.path} calls it {expected!r}; give a data set "
                "with the classes of the validation set"
            )
