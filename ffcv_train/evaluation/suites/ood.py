"""`ood`: does the network notice samples of another kind than it was trained on?"""

import statistics
from pathlib import Path
from typing import Any

from ffcv_train.data.open import DataSet, open_further
from ffcv_train.evaluation.collect import Collected, collect
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions, open_with_classes_of, trained_on
from ffcv_train.metrics.detection import detection, energy, nearest_similarity
from ffcv_train.metrics.selective import confidence_scores
from ffcv_train.system.errors import UserError


def has_training_set(options: SuiteOptions) -> bool:
    """Whether there is a training set whose samples can be neighbours."""
    return bool(options.train_set) and Path(options.train_set).exists()


def check(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where there is nothing to tell apart, or too few neighbours."""
    if not options.ood_data:
        raise UserError("--suite ood tells the validation set from other data; give it with --ood-data FILE …")
    for path in options.ood_data:
        open_further(path)
    if has_training_set(options):
        train = open_with_classes_of(data_set, options.train_set, num_classes, options.classes)
        samples = len(trained_on(options, train))
        if samples < options.neighbour:
            of_them = "" if samples == len(train) else " that were trained on"
            raise UserError(
                f"{train.path} has {samples} samples{of_them}, too few for the {options.neighbour}th neighbour; lower "
                "--knn-k"
            )


def run(examined: Examined) -> dict[str, Any]:
    """For each other data set, what `detection` says of each score.

    The scores are the largest probability, the largest logit, the energy and, where the training set is there, the
    cosine to its k-th nearest sample in the features that the last layer reads.
    """
    options, process = examined.options, examined.process
    bank = None
    if has_training_set(options):
        train = open_further(options.train_set, options.classes)
        found = collect(
            examined.network, examined.config, train, process, examined.layer, f"neighbours {train.path.name}"
        )
        assert found.features is not None
        bank = found.features[trained_on(options, train)]

    def scores(outputs: Collected) -> dict[str, Any]:
        made = {**confidence_scores(outputs.logits), "energy": energy(outputs.logits)}
        del made["margin"]
        if bank is not None:
            assert outputs.features is not None
            made["knn"] = nearest_similarity(outputs.features, bank, options.neighbour, process.device)
        return made

    inside = scores(examined.outputs)
    sets: list[dict[str, Any]] = []
    for path in options.ood_data:
        other = open_further(path)
        found = collect(examined.network, examined.config, other, process, examined.layer, f"ood {other.path.name}")
        outside = scores(found)
        sets.append(
            {
                "data_set": str(other.path),
                "samples": len(other),
                "shared_classes": sorted(set(examined.class_names or ()) & set(other.class_names or ())),
                "scores": {name: detection(inside[name], outside[name]) for name in inside},
            }
        )
    neighbours = None
    if bank is not None:
        neighbours = {"k": options.neighbour, "train_set": options.train_set, "samples": len(bank)}
    mean = {
        name: {key: statistics.fmean(one["scores"][name][key] for one in sets) for key in ("auroc", "fpr_95")}
        for name in inside
    }
    return {"samples": len(examined.outputs.labels), "neighbours": neighbours, "sets": sets, "mean": mean}
