"""The images that ffcv-train write reads: class folders, zipped data sets, tar shards, CIFAR.

A source knows names, labels and places of all samples, and reads none of them before it is asked to.
"""

from collections.abc import Callable

from ffcv_train.data.sources.cifar import cifar10, cifar100
from ffcv_train.data.sources.folders import class_folders
from ffcv_train.data.sources.shards import tar_shards
from ffcv_train.data.sources.source import Source, SourceOptions
from ffcv_train.data.sources.zips import zipped
from ffcv_train.system.errors import UserError


def open_source(dataset: str, options: SourceOptions) -> Source:
    """The source for an option `--cfg.dataset`; raises `UserError` where its files are missing or wrong."""
    source = SOURCES[dataset](options)
    if not len(source):
        raise UserError(f"{options.data_dir} holds no images for --cfg.dataset={dataset}; check --cfg.data_dir")
    return source


SOURCES: dict[str, Callable[[SourceOptions], Source]] = {
    "imagenet": class_folders,
    "zip": zipped,
    "webdataset": tar_shards,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar": cifar10,  # FFCV's name for it
}
