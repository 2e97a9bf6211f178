"""What a comparison takes of one finished run: metrics, features, linear transfer."""

import contextlib
import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.sampling import sampling_weights
from ffcv_train.data.open import DataSet, open_further, open_together, without_unread_list
from ffcv_train.evaluation.collect import Collected
from ffcv_train.evaluation.extraction import outputs as outputs_of
from ffcv_train.evaluation.matching import matched
from ffcv_train.evaluation.run import open_pair, requested_network, run_evaluation
from ffcv_train.evaluation.subject import Request
from ffcv_train.evaluation.suites.kept import identity
from ffcv_train.evaluation.suites.run import check_suites, collect_for, run_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.evaluation.transfer import transfer as probe_transfer
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.metrics.features import FeatureSums
from ffcv_train.metrics.linear_probe import GRID, HELD_OUT
from ffcv_train.metrics.selective import confidence_scores
from ffcv_train.metrics.temperature import brier_scores
from ffcv_train.models.inspect.last_layer import LastLayer, need_last_layer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json, replace_file, to_plain

FORMAT = 1

_METRICS = ("top_1", "top_5", "nll", "ece")


def measure(
    request: Request,
    process: Process,
    suites: SuiteOptions | None = None,
    transfer: tuple[Path, Path] | None = None,
    samples: Path | None = None,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Metrics on the validation set, features of both sets, transfer and suites where asked for, as plain values.

    The metrics are those of `eval` at the first of validation.resolution, flip-averaged ones beside them. Features,
    and the metrics on the training set, those of its samples that training drew, are those of centre crops of that
    side, in float32. What each validation sample
    got goes to the file `samples`, see `write_sample_results`. `transfer` are the probe's training and test set.
    `before` is what this returned earlier: what it holds of the same network on the same data is taken from there, and
    stays where it is not asked for. Raises `UserError`.
    """
    listed = request.config.data.classes
    suites = dataclasses.replace(suites or SuiteOptions(), classes=listed)
    sets = (request.config.data.train_dataset, request.config.data.val_dataset)
    further = (*suites.further, *map(str, transfer or ()))
    config = without_unread_list(request.config, sets[1:], (sets[0], *further))
    side = config.validation.resolution[0]
    validation = dataclasses.replace(config.validation, resolution=(side,), lr_tta=True)
    config = dataclasses.replace(config, validation=validation)
    request = dataclasses.replace(request, config=config)
    pair = open_pair(request, process.device)
    network, val_set, _ = pair
    check_suites(suites, val_set, network.num_classes)
    opened = open_together(sets, config.data.format, listed, further)
    drawn = sampling_weights(config.data.sampling, config.data.subset, opened[0].labels)
    trained_on = np.ones(len(opened[0]), dtype=bool) if drawn is None else drawn > 0
    train_data = hashlib.sha256(opened[0].digest().encode() + trained_on.tobytes()).hexdigest()
    about = {**identity(network, config, val_set), "train_data": train_data}
    if before is None or before.get("format") != FORMAT or before.get("identity") != about:
        before = {}
    missing = tuple(name for name in suites.suites if not _has_suite(before, suites, name))
    found = {"suites": {}, "suite_options": {}, "transfer": None, **before, "format": FORMAT, "identity": about}
    if not before:
        found |= _of_validation(run_evaluation(request, process, pair), config, request)
    if missing or not before:
        needed = dataclasses.replace(suites, suites=missing)
        outputs = collect_for(needed, network, config, val_set, process)
        if samples is not None:
            write_sample_results(samples, outputs)
        made = run_suites(needed, network, config, val_set, process, request.subject.class_names, outputs)
        found["suites"] = {**found["suites"], **made}
        found["suite_options"] = {**found["suite_options"], **{name: suites.of(name) for name in missing}}
    probed = transfer if transfer and not _has_transfer(before, transfer) else None
    if probed or not before:
        # In float32.
        precise = dataclasses.replace(config, training=dataclasses.replace(config.training, amp="off"))
        exact = requested_network(dataclasses.replace(request, config=precise), process.device)
        layer = need_last_layer(exact.model, side, config.model.arch, "features")
        if not before:
            found |= _of_features(exact, precise, opened, trained_on, process, layer, request)
        if probed:
            found["transfer"] = _transfer(exact, precise, process, layer, probed, listed)
    return {**found, **describe_environment(process.device)}


def _of_validation(report: dict[str, Any], config: RunConfig, request: Request) -> dict[str, Any]:
    result = report["results"][0]
    return {
        "loss": config.loss.name,
        "seed": config.training.seed,
        "checkpoint": request.subject.path,
        "weights": request.weights,
        "epoch": request.subject.epoch,
        "resolution": config.validation.resolution[0],
        "samples": result["count"],
        "single": {key: result[key] for key in _METRICS},
        "flip_averaged": {key: result["flip_averaged"][key] for key in _METRICS},
        "amp": report["amp"],
    }


def _of_features(
    network: Network,
    config: RunConfig,
    opened: Sequence[DataSet],
    trained_on: np.ndarray,
    process: Process,
    layer: LastLayer,
    request: Request,
) -> dict[str, Any]:
    features, metrics = {}, {}
    everything = np.ones(len(opened[1]), dtype=bool)
    for name, data_set, chosen in zip(("train", "val"), opened, (trained_on, everything), strict=True):
        data_set, _ = matched(data_set, request.subject, network.num_classes)
        features[name], metrics[name] = _features(network, config, data_set, chosen, process, layer, name)
    return {"features": features, "train": metrics["train"]}


def write_sample_results(path: Path, outputs: Collected) -> None:
    """Write what each validation sample got, in the data set's order, arrays of [N].

    `correct` bool, `nll` float32, `brier` float32 as `brier_scores` has it, and float64 `probability`, `logit` and
    `margin` as `confidence_scores` has them.
    """
    nll = torch.nn.functional.cross_entropy(outputs.logits, outputs.labels, reduction="none")
    brier = brier_scores(outputs.logits, outputs.labels).astype(np.float32)
    content = io.BytesIO()
    scores: dict[str, Any] = {**confidence_scores(outputs.logits)}
    np.savez_compressed(content, correct=outputs.correct.numpy(), nll=nll.numpy(), brier=brier, **scores)
    replace_file(path, content.getvalue())


def read_sample_results(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_sample_results` wrote, float64 [N] each; of older files `correct` and `nll` only.

    None where there is no such file.
    """
    try:
        with np.load(path) as content:
            found = {name: content[name].astype(np.float64) for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return found if {"correct", "nll"} <= set(found) else None


def read_measured(path: Path) -> dict[str, Any] | None:
    """What `measure` returned and a command wrote to `path`; None where it is not there, or is something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def is_measured(path: Path, transfer: tuple[Path, Path] | None, suites: SuiteOptions | None = None) -> bool:
    """Whether `path` holds the measures of a run, those of this transfer and these suites included."""
    content = read_measured(path)
    if content is None or content.get("format") != FORMAT:
        return False
    if suites is not None and not all(_has_suite(content, suites, name) for name in suites.suites):
        return False
    return not transfer or _has_transfer(content, transfer)


def _has_suite(content: dict[str, Any], suites: SuiteOptions, name: str) -> bool:
    try:
        return bool(content["suite_options"][name] == to_plain(suites.of(name)))
    except (KeyError, TypeError):
        return False


def _has_transfer(content: dict[str, Any], transfer: tuple[Path, Path]) -> bool:
    try:
        return bool(content["transfer"]["files"] == [str(file.resolve()) for file in transfer])
    except (KeyError, TypeError):
        return False


def _features(
    network: Network,
    config: RunConfig,
    data_set: DataSet,
    chosen: np.ndarray,
    process: Process,
    layer: LastLayer,
    head: str,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Feature metrics and plain metrics of the samples of `data_set` for which `chosen`, bool [N], is true."""
    wanted = torch.from_numpy(chosen).to(process.device)
    sums = FeatureSums(network.num_classes, layer.weight.shape[1], process.device)
    metrics = MetricSums(process.device)
    with contextlib.closing(outputs_of(network, config, data_set, process, layer, head)) as batches:
        for batch in batches:
            assert batch.features is not None
            rows = wanted[batch.indices]
            sums.update(batch.features[rows], batch.labels[rows])
            metrics.update(batch.logits[rows], batch.labels[rows])
    try:
        found = sums.compute()
    except ValueError as error:
        raise UserError(f"features on {data_set.path}: {error}; this run has diverged") from None
    if found.samples != chosen.sum():
        raise RuntimeError(f"saw {found.samples} of {chosen.sum()} samples")
    plain = metrics.compute()
    return dataclasses.asdict(found), {key: plain[key] for key in _METRICS}


def _transfer(
    network: Network, config: RunConfig, process: Process, layer: LastLayer, files: tuple[Path, Path], classes: str
) -> dict[str, Any]:
    train, test = (open_further(file, classes) for file in files)
    probe = probe_transfer(network, layer, config, train, test, process)
    return {
        "files": [str(file.resolve()) for file in files],
        "num_classes": len(probe.fit.bias),
        "accuracy": probe.accuracy,
        "strength": probe.strength,
        "at_edge": probe.at_edge,
        "converged": probe.fit.converged,
        "grid": [min(GRID), max(GRID), len(GRID)],
        "held_out": HELD_OUT,
        "train_samples": probe.train_samples,
        "test_samples": probe.test_samples,
        "curve": [dataclasses.asdict(candidate) for candidate in probe.curve],
    }
