"""What suites are asked to do, and of what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import Classes, match_classes
from ffcv_train.data.open import DataSet, open_further, relabelled
from ffcv_train.evaluation.collect import Collected
from ffcv_train.metrics.groups import FEW_UNDER, MANY_OVER
from ffcv_train.models.inspect.last_layer import LastLayer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process


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

    corrupted_data: str = ""
    """corruptions: a folder of ImageNet-C or CIFAR-10-C; empty: they are made"""
    corruption_seed: int = 0
    """corruptions: of what is made"""
    corruption_samples: int = 0
    """corruptions: of how many samples they are made, drawn by the seed; 0, or more than there are: of all"""
    frost_images: str = ""
    """corruptions: folder of the authors' photographs of frost; empty: those of the package imagecorruptions"""
    variant_data: tuple[str, ...] = ()
    """variants: data sets of the network's classes or of some"""
    real_labels: str = ""
    """variants: the file of ReaL's labels"""
    classes: str = ""
    """data.classes: names of the network's classes, for data sets besides the validation set, see `open_further`"""
    part_file: str = ""
    """Beginning of the names of files in which finished suites and sums are kept until all are there; empty: none"""

    @property
    def further(self) -> tuple[str, ...]:
        """The data sets of the network's classes that the suites read besides the validation set."""
        wanted = {
            "calibration": (self.calibrate_on,),
            "groups": (self.train_set,),
            "ood": (self.train_set,),
            "corruptions": (self.corrupted_data,),
            "variants": self.variant_data,
        }
        return tuple(path for suite in self.suites for path in wanted.get(suite, ()) if path)

    def of(self, suite: str) -> dict[str, Any]:
        """The options on which the record of `suite` depends, files by their absolute paths."""

        def whole(path: str) -> str:
            return str(Path(path).resolve()) if path else ""

        depends: dict[str, dict[str, Any]] = {
            "calibration": {"calibrate_on": whole(self.calibrate_on), "split_seed": self.split_seed},
            "groups": {
                "train_set": whole(self.train_set),
                "many_over": self.many_over,
                "few_under": self.few_under,
            },
            "corruptions": {
                "corrupted_data": whole(self.corrupted_data),
                "seed": self.corruption_seed,
                # Records of before the option are those of all samples.
                **({"samples": self.corruption_samples} if self.corruption_samples else {}),
            },
            "variants": {
                "variant_data": [whole(path) for path in self.variant_data],
                "real_labels": whole(self.real_labels),
            },
            "ood": {
                "ood_data": [whole(path) for path in self.ood_data],
                "train_set": whole(self.train_set),
                "neighbour": self.neighbour,
            },
        }
        return depends.get(suite, {})


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


def open_with_classes_of(data_set: DataSet, path: str, num_classes: int, classes_file: str = "") -> DataSet:
    """The data set at `path`, with the labels of `data_set`, whose classes are the network's `num_classes`.

    `classes_file` as in `open_further`. Raises `UserError` where it has other classes.
    """
    classes = Classes(str(data_set.path), data_set.class_names, num_classes, ignorable=False)
    other = open_further(path, classes_file)
    return relabelled(other, match_classes(other, classes), classes.names)
