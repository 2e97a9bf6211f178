"""`variants`: other pictures of the network's classes, or of some: ImageNet-V2, -A, -R, Sketch; and ReaL's labels."""

import re
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffcv_train.data.classes import Classes, match_classes
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.open import DataSet, open_further
from ffcv_train.evaluation.collect import collect
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json

_NUMBER = re.compile(r"val_(\d{8})")


def check(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where there is no variant, or its classes are not the network's."""
    if not options.variant_data and not options.real_labels:
        raise UserError(
            "--suite variants needs other pictures of the classes, or other labels; give --variant-data DATA … or "
            "--real-labels real.json"
        )
    for path in options.variant_data:
        network_labels(open_further(path, options.classes), data_set.class_names, num_classes)
    if options.real_labels:
        if num_classes != 1000:
            raise UserError(f"--real-labels are ImageNet's, and the network has {num_classes} classes, not 1000")
        real_sets(Path(options.real_labels), data_set)


def run(examined: Examined) -> dict[str, Any]:
    """Metrics per variant and their means; with ReaL the accuracy by its labels."""
    options, num_classes = examined.options, examined.network.num_classes
    names = examined.class_names or examined.data_set.class_names
    sets = []
    for path in options.variant_data:
        data_set = open_further(path, options.classes)
        own = torch.tensor(network_labels(data_set, names, num_classes))
        found = collect(
            examined.network, examined.config, data_set, examined.process, None, f"variant {data_set.path.name}"
        )
        labels = own[found.labels]
        metrics = MetricSums()
        metrics.update(without_absent(found.logits, own), labels)
        result = metrics.compute()
        sets.append(
            {
                "data_set": str(data_set.path),
                "samples": len(data_set),
                "classes": int((own >= 0).sum()),
                "left_out": num_classes - int((own >= 0).sum()),
                **{key: result[key] for key in ("top_1", "top_5", "nll", "ece")},
            }
        )
    real = None
    if options.real_labels:
        wanted = real_sets(Path(options.real_labels), examined.data_set)
        predicted = examined.outputs.logits.argmax(dim=1).tolist()
        real = {"labels": options.real_labels, **real_accuracy(predicted, wanted)}
    mean = {key: statistics.fmean(one[key] for one in sets) for key in ("top_1", "nll", "ece")} if sets else None
    return {"sets": sets, "mean": mean, "real": real}


def network_labels(data_set: DataSet, names: tuple[str, ...] | None, num_classes: int) -> list[int]:
    """The network's label for each label of `data_set`, by the classes' names; −1 for classes without images.

    Folders that are called by numbers, as ImageNet-V2's are, are the network's labels themselves, whatever their order
    by name, unless the network's classes are called by numbers too. Raises `UserError` where a class is none of the
    network's, or nothing names the classes.
    """
    theirs = data_set.class_names
    if theirs is None:
        raise UserError(
            f"nothing names the classes of {data_set.path}; list them in the order of its labels in a file, a line "
            f"each, and {data_set.how_to_list}"
        )
    if names is None and set(theirs) == {str(label) for label in range(num_classes)}:
        return [int(name) for name in theirs]
    if names is None:
        raise UserError(
            f"nothing names the network's classes, by which those of {data_set.path} would be matched; give a "
            "data.val_dataset whose classes have names"
        )
    network = Classes("the network", names, num_classes, numbered=True, ignorable=False)
    labels = match_classes(data_set, network).labels
    if labels is not None:
        return labels.tolist()
    present = set(data_set.labels.tolist())
    return [label if label in present else -1 for label in range(len(theirs))]


def without_absent(logits: Tensor, present: Tensor) -> Tensor:
    """`logits` [N, K] with −∞ for classes that are not `present`, int64 labels: neither predictions nor probability.

    Negative ones are of no class.
    """
    absent = torch.ones(logits.shape[1], dtype=torch.bool)
    absent[present[present >= 0]] = False
    return logits.masked_fill(absent, -torch.inf)


def real_accuracy(predicted: list[int], wanted: list[set[int]]) -> dict[str, Any]:
    """The share of images with labels at all whose prediction is among them (Beyer et al., arXiv:2006.07159)."""
    hits = [label in labels for label, labels in zip(predicted, wanted, strict=True) if labels]
    return {"samples": len(hits), "without_labels": len(wanted) - len(hits), "top_1": sum(hits) / max(1, len(hits))}


def real_sets(file: Path, data_set: DataSet) -> list[set[int]]:
    """ReaL's labels of each sample: the file lists those of ILSVRC2012_val_00000001 … in order."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        listed = [{int(label) for label in labels} for labels in content]
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give real.json of the ReaL labels") from None
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{file} is not a list of lists of labels; give real.json of the ReaL labels") from None
    if isinstance(data_set, Beton):
        names = list(data_set.files)
    else:
        names = [data_set.source.name(index) for index in range(len(data_set))]
    numbers = [_NUMBER.search(name) for name in names]
    if len(names) != len(data_set) or not all(numbers):
        raise UserError(
            f"{data_set.path} does not say which image of ImageNet's validation set each sample is "
            "(ILSVRC2012_val_00000001 …), by which ReaL's labels are listed; write it from those files"
        )
    places = [int(number[1]) - 1 for number in numbers if number]
    if max(places) >= len(listed):
        raise UserError(f"{file} has {len(listed)} images, and {data_set.path} has number {max(places) + 1}")
    return [listed[place] for place in places]
