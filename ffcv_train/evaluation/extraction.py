"""Logits and penultimate features of every sample of a data set: what figures and comparisons start from."""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSet, val_loader
from ffcv_train.evaluation.matching import say
from ffcv_train.evaluation.predict import out_of_memory, predict, shown
from ffcv_train.evaluation.run import open_pair
from ffcv_train.evaluation.subject import Request
from ffcv_train.metrics.logits_file import RowBuffer, create_logits
from ffcv_train.models.inspect.last_layer import LastLayer, find_last_layer, need_last_layer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.signals import StopSignals


class Output(NamedTuple):
    """A batch's outputs, on the network's device."""

    logits: Tensor
    """float32 [B, K]"""
    features: Tensor | None
    """float32 [B, D], or None where no last layer was given"""
    labels: Tensor
    """int64 [B]"""
    indices: Tensor
    """int64 [B], positions in the data set"""


def outputs(
    network: Network, config: RunConfig, data_set: DataSet, process: Process, layer: LastLayer | None, head: str = ""
) -> Generator[Output, None, None]:
    """Yield the outputs of this rank's share of `data_set`, centre crops in order, with a progress line.

    The side is the first of `config.validation.resolution`. With `layer`, the features that it reads come along.
    """
    side = config.validation.resolution[0]
    line = ProgressLine() if process.is_main else None
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(contextlib.closing(val_loader(config, data_set, side, process)))
        stack.enter_context(out_of_memory(config, side))
        if layer is not None:
            stack.enter_context(layer.capture())
        batches = stack.enter_context(contextlib.closing(shown(loader, line, head or f"{side} px")))
        predictions = predict(network, batches)
        for prediction in stack.enter_context(contextlib.closing(predictions)):
            features = None if layer is None else layer.features
            yield Output(prediction.logits, features, prediction.labels, prediction.indices)


def write_logits(request: Request, process: Process) -> dict[str, Any]:
    """Write the file that `request` asks for; returns what it says `about` itself. Raises `UserError`.

    Each rank writes its own samples to the one file, so the ranks must share the disk.
    """
    config, path = request.config, request.output
    assert path is not None
    network, data_set, notes = open_pair(request, process.device)
    say(notes, process)
    side = config.validation.resolution[0]
    if request.options.features:
        layer: LastLayer | None = need_last_layer(network.model, side, config.model.arch, "features")
    else:
        layer = find_last_layer(network.model, side)
    about = {
        "checkpoint": request.subject.path,
        "weights": request.weights,
        "epoch": request.subject.epoch,
        "arch": config.model.arch,
        "loss": config.loss.name if request.subject.file.of_a_run else None,
        "data_set": str(data_set.path),
        "notes": notes,
        "resolution": side,
        "crop_ratio": config.validation.crop_ratio,
        "crop": config.validation.crop,
        "interpolation": config.validation.interpolation,
        "amp": config.training.amp,
        "mean": list(network.normalise.mean),
        "std": list(network.normalise.std),
        **describe_environment(process.device),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(StopSignals(path))  # so that no unfinished file of full size stays behind
        names: list[str | None] = [None]
        if process.is_main:
            names[0] = str(
                stack.enter_context(
                    create_logits(
                        path,
                        rows=len(data_set),
                        classes=network.num_classes,
                        features=layer.weight.shape[1] if request.options.features and layer else 0,
                        about=about,
                        class_names=class_names(request, data_set, network.num_classes),
                        weight=None if layer is None else layer.weight,
                        bias=None if layer is None else layer.bias,
                    )
                )
            )
        if process.world_size > 1:
            torch.distributed.broadcast_object_list(names)
        batches = outputs(network, config, data_set, process, layer if request.options.features else None)
        count = _fill(Path(str(names[0])), stack.enter_context(contextlib.closing(batches)))
        total = torch.tensor(count, device=process.device)
        if process.world_size > 1:
            torch.distributed.all_reduce(total)  # also waits for the last writer
        if int(total) != len(data_set):
            raise RuntimeError(f"wrote {int(total)} of {len(data_set)} samples")
    return about


def class_names(request: Request, data_set: DataSet, num_classes: int) -> tuple[str, ...] | None:
    """The names of the model's classes: the checkpoint's, else the data set's where it has as many; else None."""
    if request.subject.class_names is not None:
        return request.subject.class_names
    names = data_set.class_names
    return names if names is not None and len(names) == num_classes else None


def _fill(temporary: Path, batches: Iterator[Output]) -> int:
    buffer, count = RowBuffer(temporary), 0
    for batch in batches:
        values = {"logits": batch.logits, "labels": batch.labels}
        if batch.features is not None:
            values["features"] = batch.features
        buffer.add(batch.indices, values)
        count += len(batch.labels)
    buffer.flush()
    return count
