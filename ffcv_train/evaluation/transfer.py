"""Linear transfer: how well a linear probe on a checkpoint's frozen features tells the classes of another data set."""

import contextlib
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.classes import check_labels
from ffcv_train.data.open import DataSet, match_val, open_together
from ffcv_train.evaluation.extraction import outputs
from ffcv_train.evaluation.matching import say
from ffcv_train.evaluation.run import requested_network
from ffcv_train.evaluation.subject import Request
from ffcv_train.metrics.linear_probe import HELD_OUT, Probe, linear_probe
from ffcv_train.models.inspect.last_layer import LastLayer, need_last_layer
from ffcv_train.models.network import Network
from ffcv_train.system.class_names import largest_unnamed_label
from ffcv_train.system.distributed import Process, need_one_process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.resources import available_bytes


def run_transfer(request: Request, process: Process) -> dict[str, Any]:
    """Extract, search, measure; the report, as JSON can say it. Raises `UserError` before long work starts."""
    options, config = request.options, request.config
    need_one_process(process, "linear transfer")
    data = config.data
    train, val = open_together((options.train, options.val), data.format, data.classes)
    network = requested_network(request, process.device)
    layer = need_last_layer(network.model, config.validation.resolution[0], config.model.arch, "frozen features")
    start = time.perf_counter()
    result = transfer(network, layer, config, train, val, process, held_out=options.held_out, seed=options.split_seed)
    return {
        "format": 1,
        "checkpoint": request.subject.path,
        "weights": request.weights,
        "epoch": request.subject.epoch,
        "arch": config.model.arch,
        "train_set": str(train.path),
        "val_set": str(val.path),
        "features": layer.weight.shape[1],
        "resolution": config.validation.resolution[0],
        "crop_ratio": config.validation.crop_ratio,
        "crop": config.validation.crop,
        "interpolation": config.validation.interpolation,
        "amp": config.training.amp,
        "held_out_share": options.held_out,
        "split_seed": options.split_seed,
        "accuracy": result.accuracy,
        "strength": result.strength,
        "at_edge": result.at_edge,
        "converged": result.fit.converged,
        "train_samples": result.train_samples,
        "held_out_samples": result.held_out_samples,
        "val_samples": result.test_samples,
        "curve": [asdict(candidate) for candidate in result.curve],
        "seconds": time.perf_counter() - start,
        **describe_environment(process.device),
    }


def transfer(
    network: Network,
    layer: LastLayer,
    config: RunConfig,
    train: DataSet,
    val: DataSet,
    process: Process,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> Probe:
    """`linear_probe` on the features that `layer` reads, of centre crops of `train` and `val`, with a progress line.

    Raises `UserError` where `val` has other classes than `train`, `train` is too small, or memory is too small.
    """
    num_classes, val, notes = common_classes(train, val)
    say(notes, process)
    _check_memory(len(train), len(val), layer.weight.shape[1])
    data = [gather(network, config, data_set, process, layer) for data_set in (train, val)]
    line = ProgressLine()

    def show(done: int, of: int) -> None:
        line.show("probe", done, of, "strengths")

    try:
        return linear_probe(data[0], data[1], num_classes, held_out=held_out, seed=seed, progress=show)
    except ValueError as error:
        raise UserError(f"{train.path}: {error}; give a larger data set or another --held-out") from None
    finally:
        line.close()


def gather(
    network: Network, config: RunConfig, data_set: DataSet, process: Process, layer: LastLayer
) -> tuple[Tensor, Tensor]:
    """Features float32 [N, D] and labels int64 [N] of a whole data set, on the CPU, in its order.

    Raises `UserError` where a feature is not finite.
    """
    features = torch.empty(len(data_set), layer.weight.shape[1])
    labels = torch.empty(len(data_set), dtype=torch.int64)
    with contextlib.closing(
        outputs(network, config, data_set, process, layer, f"features of {data_set.path.name}")
    ) as all_:
        for batch in all_:
            assert batch.features is not None
            features[batch.indices.cpu()] = batch.features.cpu()
            labels[batch.indices.cpu()] = batch.labels.cpu()
    if not bool(torch.isfinite(features.sum(dim=1)).all()):
        raise UserError(f"the network's features of {data_set.path} are not finite; its training diverged")
    return features, labels


def common_classes(train: DataSet, val: DataSet) -> tuple[int, DataSet, list[str]]:
    """The number of classes of a probe, `val` with the labels of `train`, and notes for the user.

    Raises `UserError` where `val` has other classes than `train`, or `train` has images of one class only.
    """
    last = int(train.labels.max())
    count = train.num_classes or val.num_classes or last + 1
    if not (train.num_classes or val.num_classes) and last > largest_unnamed_label(len(train)):
        raise UserError(
            f"{train.describe(int(train.labels.argmax()))} has the label {last}, far beyond the number of images; give "
            "a data set whose labels number its classes from 0 on"
        )
    check_labels(train, count)
    val, note = match_val(train, val, count)
    if train.labels.min() == train.labels.max():
        raise UserError(f"{train.path} has samples of one class only, and a probe tells classes apart; give another")
    return count, val, list(dict.fromkeys([*train.notes, *val.notes, *([note] if note else [])]))


def _check_memory(train: int, val: int, width: int) -> None:
    # The features, and what splitting, centring and turning them takes.
    needed, available = 4 * width * (4 * train + val), available_bytes()
    if needed > available:
        raise UserError(
            f"fitting {train:,} × {width:,} features takes {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} GiB are available; give a smaller --train"
        )
