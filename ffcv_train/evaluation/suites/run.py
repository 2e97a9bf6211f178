"""The suites by name: checking what they need, and running them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSet, without_unread_list
from ffcv_train.evaluation.collect import Collected, collect
from ffcv_train.evaluation.extraction import class_names
from ffcv_train.evaluation.run import open_pair, run_evaluation
from ffcv_train.evaluation.subject import Request
from ffcv_train.evaluation.suites import calibration, corruptions, groups, ood, selective, variants
from ffcv_train.evaluation.suites.kept import KeptRecords
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.models.inspect.last_layer import LastLayer, need_last_layer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process

SUITES: dict[str, Callable[[Examined], dict[str, Any]]] = {
    "calibration": calibration.run,
    "selective": selective.run,
    "groups": groups.run,
    "ood": ood.run,
    "corruptions": corruptions.run,
    "variants": variants.run,
}
"""Name of each suite, and what makes its record"""
_CHECKS: dict[str, Callable[[SuiteOptions, DataSet, int], None]] = {
    "calibration": calibration.check,
    "groups": groups.check,
    "ood": ood.check,
    "corruptions": corruptions.check,
    "variants": variants.check,
}


def check_suites(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where a suite lacks something, before the first batch."""
    for name in options.suites:
        if name in _CHECKS:
            _CHECKS[name](options, data_set, num_classes)


def run_suites(
    options: SuiteOptions,
    network: Network,
    config: RunConfig,
    data_set: DataSet,
    process: Process,
    names: tuple[str, ...] | None = None,
    outputs: Collected | None = None,
) -> dict[str, Any]:
    """A record per suite, by name, of single views at the first of validation.resolution; the same on every rank.

    `outputs` is what `collect_for` gave, where it is there already. Records are kept beside `options.part_file` until
    `remove_kept`, and those that a stopped run kept are taken as they are. Raises `UserError` where memory is too
    small, or the network diverged.
    """
    if outputs is None:
        outputs = collect_for(options, network, config, data_set, process)
    layer = _layer(options, network, config)
    examined = Examined(network, config, process, data_set, outputs, names, layer, options)
    kept, records = KeptRecords(examined), {}
    for name in options.suites:
        record = kept.get(name)
        if record is None:
            record = SUITES[name](examined)
            kept.keep(name, record)
        if name == "corruptions":  # their sums so far, for the record has them
            corruptions.remove_part(examined)
        records[name] = record
    return records


def collect_for(
    options: SuiteOptions, network: Network, config: RunConfig, data_set: DataSet, process: Process
) -> Collected:
    """What the suites need of the validation set."""
    return collect(network, config, data_set, process, _layer(options, network, config), "suites")


def _layer(options: SuiteOptions, network: Network, config: RunConfig) -> LastLayer | None:
    if "ood" not in options.suites or not ood.has_training_set(options):
        return None
    side = config.validation.resolution[0]
    return need_last_layer(network.model, side, config.model.arch, "the neighbours of --suite ood")


def evaluate_with_suites(request: Request, process: Process, options: SuiteOptions) -> dict[str, Any]:
    """The report of `run_evaluation`, with the suites' records under `suites` where there are any.

    The same on every rank. Raises `UserError`, for what suites lack before the first batch.
    """
    if not options.suites:
        return run_evaluation(request, process)
    options = dataclasses.replace(options, classes=request.config.data.classes)
    config = without_unread_list(request.config, [request.config.data.val_dataset], options.further)
    request = dataclasses.replace(request, config=config)
    pair = open_pair(request, process.device)
    network, data_set, _ = pair
    check_suites(options, data_set, network.num_classes)
    report = run_evaluation(request, process, pair)
    names = class_names(request, data_set, network.num_classes)
    return {**report, "suites": run_suites(options, network, request.config, data_set, process, names)}
