"""What suites are asked to do, and of what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import Classes, match_classes
from ffcv_train.data.loading.sampling import sampling_weights
from ffcv_train.data.open import DataSet, open_further, relabelled
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
    train_subset: str = ""
    """groups, ood: data.subset of the training, a file of the samples of `train_set` that are meant; empty: all"""
    train_weights: str = ""
    """groups, ood: data.sampling of the training where it is a file: samples of weight 0 are not meant"""
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

        # Records of before an option are those without it.
        part = {"train_subset": whole(self.train_subset), "train_weights": whole(self.train_weights)}
        trained_on = {"train_set": whole(self.train_set), **{key: file for key, file in part.items() if file}}
        depends: dict[str, dict[str, Any]] = {
            "calibration": {"calibrate_on": whole(self.calibrate_on), "split_seed": self.split_seed},
            "groups": {
                **trained_on,
                "many_over": self.many_over,
                "few_under": self.few_under,
            },
            "corruptions": {
                "corrupted_data": whole(self.corrupted_data),
                "seed": self.corruption_seed,
                **({"samples": self.corruption_samples} if self.corruption_samples else {}),
                **({"frost_images": whole(self.frost_images)} if self.frost_images else {}),
                # Those of before were cut by validation.crop_ratio.
                **({"images": "whole"} if self.corrupted_data else {}),
            },
            "variants": {
                "variant_data": [whole(path) for path in self.variant_data],
                "real_labels": whole(self.real_labels),
            },
            "ood": {
                "ood_data": [whole(path) for path in self.ood_data],
                **trained_on,
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


def trained_on(options: SuiteOptions, train: DataSet) -> np.ndarray:
    """Which samples of the training set `train` training drew: int64 [M], sorted, M ≥ 1.

    Raises `UserError` where `options` names files that do not tell.
    """
    try:
        weights = sampling_weights(options.train_weights or "uniform", options.train_subset, train.labels)
    except UserError as error:
        raise UserError(
            f"which samples of {train.path} were trained on is not known ({error}); give what was trained on, as a "
            "data set of its own, with --train-set FILE"
        ) from None
    return np.arange(len(train)) if weights is None else np.flatnonzero(weights)
