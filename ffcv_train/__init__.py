"""ffcv_train: train ImageNet classifiers fast on FFCV files, with the MaxSup criterion."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # what editors and mypy read
    from ffcv_train.config.read import load_config as load_config
    from ffcv_train.config.schema import RunConfig as RunConfig
    from ffcv_train.data.convert.write import WriteConfig as WriteConfig
    from ffcv_train.data.kernels.crops import CenterCrop as CenterCrop
    from ffcv_train.data.kernels.crops import RandomResizedCrop as RandomResizedCrop
    from ffcv_train.data.loader import Loader as Loader
    from ffcv_train.data.loading.batch import Batch as Batch
    from ffcv_train.data.loading.batch import ViewBatch as ViewBatch
    from ffcv_train.data.open import open_data_set as open_data_set
    from ffcv_train.data.write import write_dataset as write_dataset
    from ffcv_train.evaluation.classifier import Classifier as Classifier
    from ffcv_train.evaluation.classifier import evaluate as evaluate
    from ffcv_train.evaluation.classifier import load_network as load_network
    from ffcv_train.losses import CRITERIA as CRITERIA
    from ffcv_train.losses.base import Criterion as Criterion
    from ffcv_train.losses.label_smoothing import LabelSmoothing as LabelSmoothing
    from ffcv_train.losses.maxsup import MaxSup as MaxSup
    from ffcv_train.losses.maxsup import maxsup as maxsup
    from ffcv_train.metrics.classification import MetricSums as MetricSums
    from ffcv_train.models.factory import create_model as create_model
    from ffcv_train.models.normalise import Normaliser as Normaliser
    from ffcv_train.system.errors import UserError as UserError
    from ffcv_train.training.train import train as train
    from ffcv_train.training.trainer import Stopped as Stopped

# The module that defines each name. Names are imported when first asked for: conversion's worker processes import this
# package and must stay light, and who wants the criterion alone needs no compiler.
_MODULE_OF = {
    "Batch": "data.loading.batch",
    "CRITERIA": "losses",
    "CenterCrop": "data.kernels.crops",
    "Classifier": "evaluation.classifier",
    "Criterion": "losses.base",
    "LabelSmoothing": "losses.label_smoothing",
    "Loader": "data.loader",
    "MaxSup": "losses.maxsup",
    "MetricSums": "metrics.classification",
    "Normaliser": "models.normalise",
    "RandomResizedCrop": "data.kernels.crops",
    "RunConfig": "config.schema",
    "Stopped": "training.trainer",
    "UserError": "system.errors",
    "ViewBatch": "data.loading.batch",
    "WriteConfig": "data.convert.write",
    "create_model": "models.factory",
    "evaluate": "evaluation.classifier",
    "load_config": "config.read",
    "load_network": "evaluation.classifier",
    "maxsup": "losses.maxsup",
    "open_data_set": "data.open",
    "train": "training.train",
    "write_dataset": "data.write",
}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"ffcv_train has no {name!r}; it offers {', '.join(_MODULE_OF)}")
    return getattr(importlib.import_module(f"ffcv_train.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
