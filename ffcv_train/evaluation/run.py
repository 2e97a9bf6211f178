"""From a checkpoint and a data set to metrics at every resolution asked for: what `eval` does."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSet, open_data_set, val_loader
from ffcv_train.evaluation.matching import matched, say
from ffcv_train.evaluation.predict import Prediction, evaluate_batches, out_of_memory, shown
from ffcv_train.evaluation.subject import Request
from ffcv_train.metrics.per_class import SampleResults
from ffcv_train.models.factory import check_resolution, create_model
from ffcv_train.models.inspect.last_layer import need_last_layer
from ffcv_train.models.network import Network, normalisation
from ffcv_train.models.weights import load_weights
from ffcv_train.system.distributed import Process, all_reduce_sum, local_process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine


def requested_network(request: Request, device: torch.device, model: nn.Module | None = None) -> Network:
    """The network that `request` names, with the checkpoint's classes, checked against every resolution asked for.

    `model` may stand in place of the network that the configuration names. Raises `UserError`.
    """
    config = request.config
    model = _load_model(request, model)
    for resolution in config.validation.resolution:
        num_classes = check_resolution(model, resolution, config.model.arch)
    if request.tau is not None:
        side = config.validation.resolution[0]
        need_last_layer(model, side, config.model.arch, "normalised weights").normalise(request.tau)
    network = Network.on(device, model, num_classes, config, normalisation(config, request.subject.file))
    if request.taken and local_process(device).is_main:
        print(request.taken, file=sys.stderr)
    torch.backends.cudnn.benchmark = True  # every batch but the last has the same shape
    if network.amp_dtype is None:
        # What is asked for in float32 is no TF32, which keeps 10 bits of the 23.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    return network


class Pair(NamedTuple):
    """A network, and the data set that it is to be evaluated on, with the network's labels."""

    network: Network
    data_set: DataSet
    notes: list[str]
    """What the user is to be told of how their classes were matched"""


def open_pair(request: Request, device: torch.device) -> Pair:
    """The network and the validation set of `request`. Raises `UserError` where they do not fit."""
    data = request.config.data
    data_set = open_data_set(data.val_dataset, data.format, data.classes)
    network = requested_network(request, device)
    return Pair(network, *matched(data_set, request.subject, network.num_classes, ignore=request.ignore_class_names))


def run_evaluation(request: Request, process: Process, pair: Pair | None = None) -> dict[str, Any]:
    """Evaluate and return the report, the same on every rank (`results` holds a record per resolution).

    `pair` is what `open_pair` gave, where it is there already. With the option `per_class` the report's `per_class` is
    `ClassResults.plain` of the single view at the first resolution. Everything that can be wrong is checked before the
    first batch. Raises `UserError`.
    """
    subject, config = request.subject, request.config
    network, data_set, notes = pair or open_pair(request, process.device)
    say(notes, process)
    environment = describe_environment(process.device)
    wanted = getattr(request.options, "per_class", None) is not None
    samples = SampleResults(len(data_set), process.device) if wanted else None
    results = _results(network, config, data_set, process, samples)
    per_class = {}
    if samples is not None:
        names = subject.class_names or data_set.class_names
        names = names if names is not None and len(names) == network.num_classes else None
        found = samples.reduce(all_reduce_sum).compute(data_set.labels, network.num_classes, names)
        per_class = {"per_class": {"resolution": results[0]["resolution"], **found.plain()}}
    return {
        "format": 1,
        "checkpoint": subject.path,
        "weights": request.weights,
        "tau": request.tau,
        "epoch": subject.epoch,
        "arch": config.model.arch,
        "use_blurpool": config.model.use_blurpool,
        "num_classes": network.num_classes,
        "data_set": str(data_set.path),
        "notes": notes,
        "samples": len(data_set),
        "taken": request.taken or None,
        "normalisation": {"mean": network.normalise.mean, "std": network.normalise.std},
        "crop_ratio": config.validation.crop_ratio,
        "crop": config.validation.crop,
        "interpolation": config.validation.interpolation,
        "amp": config.training.amp,
        "world_size": process.world_size,
        "batch_per_device": config.validation.batch_size,
        "results": results,
        **per_class,
        **environment,
    }


def _results(
    network: Network, config: RunConfig, data_set: DataSet, process: Process, samples: SampleResults | None
) -> list[dict[str, Any]]:
    """A record per side of validation.resolution; `samples` takes what each sample got at the first."""
    results: list[dict[str, Any]] = []
    sides = list(dict.fromkeys(config.validation.resolution))
    line = ProgressLine() if process.is_main else None
    with contextlib.closing(val_loader(config, data_set, max(sides), process)) as loader:
        for side in sides:
            loader.set_resolution(side)
            start = time.perf_counter()
            with out_of_memory(config, side), contextlib.closing(shown(loader, line, f"{side} px")) as batches:
                metrics = evaluate_batches(
                    network,
                    batches,
                    tta=config.validation.lr_tta,
                    num_samples=len(data_set),
                    observe=_recorder(samples) if samples is not None and side == sides[0] else None,
                )
            seconds = time.perf_counter() - start
            speed = {"seconds": seconds, "images_per_s": len(data_set) / seconds}
            results.append({"resolution": side, **metrics, **speed})
    return results


def _recorder(samples: SampleResults) -> Callable[[Prediction], None]:
    return lambda batch: samples.update(batch.logits, batch.labels, batch.indices)


def _load_model(request: Request, model: nn.Module | None) -> nn.Module:
    """The network with the checkpoint's weights, on the CPU."""
    subject, wanted = request.subject, request.config.model.num_classes
    # Only a foreign file's tensors know its class count, so a head that does not fit tells it.
    expected = subject.num_classes or wanted or 1000
    loaded, file_classes = _load(request, expected, model)
    if file_classes == expected:
        return loaded
    if model is not None:
        raise UserError(f"{subject.path} has {file_classes} classes; pass a model with as many outputs")
    if wanted:
        raise UserError(
            f"{subject.path} has {file_classes} classes, but model.num_classes is {wanted}; leave it out, or set it to "
            f"{file_classes}"
        )
    return _load(request, file_classes)[0]


def _load(request: Request, num_classes: int, model: nn.Module | None = None) -> tuple[nn.Module, int]:
    """The loaded network and the checkpoint's number of classes; where that is another, the head is random."""
    config = request.config.model
    if model is None:
        model = create_model(config, num_classes)
    report = load_weights(model, request.subject.file, config.arch, ema=request.weights == "ema")
    if request.weights == "ema" and not report.averaged:
        raise UserError(f"the averaged weights in {request.subject.path} are no {config.arch}'s; use --weights model")
    return model, report.file_classes if report.replaced else num_classes
