"""`variants`: other pictures of the network's classes, or of some: ImageNet-V2, -A, -R, Sketch; and ReaL's labels."""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffcv_train.data.classes import match_classes, used_names
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.open import DataSet, open_further
from ffcv_train.evaluation.collect import collect
from ffcv_train.evaluation.matching import classes_of
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.system.class_names import whole_numbers
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
        labels_of_imagenet(data_set.class_names, num_classes)
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
        label_of = labels_of_imagenet(names, num_classes)
        listed = real_sets(Path(options.real_labels), examined.data_set)
        wanted = [{label_of[index] for index in indices} for indices in listed]
        predicted = examined.outputs.logits.argmax(dim=1).tolist()
        real = {"labels": options.real_labels, **real_accuracy(predicted, wanted)}
    mean = {key: statistics.fmean(one[key] for one in sets) for key in ("top_1", "nll", "ece")} if sets else None
    return {"sets": sets, "mean": mean, "real": real}


def network_labels(data_set: DataSet, names: tuple[str, ...] | None, num_classes: int) -> list[int]:
    """The network's label for each label of `data_set`, by the classes' names; −1 for classes without images.

    Folders that are called by numbers, as ImageNet-V2's are, are ImageNet's classes in its order where the network's
    are called by WordNet IDs, and its labels themselves where it names none. Raises `UserError` where a class is none
    of the network's, or nothing says which it is.
    """
    theirs = data_set.class_names
    if theirs is None:
        raise UserError(
            f"nothing names the classes of {data_set.path}; list them in the order of its labels in a file, a line "
            f"each, and {data_set.how_to_list}"
        )
    if names is None and set(theirs) == {str(label) for label in range(num_classes)}:
        return [int(name) for name in theirs]
    classes = dataclasses.replace(classes_of(data_set, "the network", names, num_classes), ignorable=False)
    if classes.names is None:
        raise UserError(
            f"nothing names the network's classes, by which those of {data_set.path} would be matched; give a "
            "data.val_dataset whose classes have names"
        )
    used = used_names(data_set)
    if whole_numbers(used) is not None and not set(used) <= set(classes.names):
        if not set(classes.names) <= set(imagenet_names().keys):
            raise UserError(
                f"{data_set.path} calls its classes by numbers, and the network's label 0 is {classes.names[0]!r}: "
                "nothing says which class a number is; call the classes as the network does"
            )
        data_set = dataclasses.replace(data_set, class_names=_called_by_wordnet(theirs))
    labels = match_classes(data_set, classes).labels
    if labels is not None:
        return labels.tolist()
    present = set(data_set.labels.tolist())
    return [label if label in present else -1 for label in range(len(theirs))]


def _called_by_wordnet(names: Sequence[str]) -> tuple[str, ...]:
    """`names` with ImageNet's labels, 0 … 999, replaced by its WordNet IDs."""
    keys = imagenet_names().keys
    numbers = [(whole_numbers([name]) or [len(keys)])[0] for name in names]
    return tuple(keys[number] if number < len(keys) else name for number, name in zip(numbers, names, strict=True))


def labels_of_imagenet(names: Sequence[str] | None, num_classes: int) -> list[int]:
    """The network's label of each of ImageNet's 1,000 classes, in ImageNet's order.

    `names` of the network's classes are WordNet IDs in any order, or ImageNet's labels as numbers; None: they are taken
    to be in its order. Raises `UserError` where they are others.
    """
    keys = imagenet_names().keys
    if num_classes != len(keys):
        raise UserError(f"--real-labels are ImageNet's, and the network has {num_classes} classes, not {len(keys)}")
    if names is None:
        return list(range(len(keys)))
    for called in (keys, [str(label) for label in range(len(keys))]):
        if set(names) == set(called):
            label_of = {name: label for label, name in enumerate(names)}
            return [label_of[name] for name in called]
    known = set(keys)
    other = next((name for name in names if name not in known), names[0])
    raise UserError(
        f"--real-labels are numbers of ImageNet's classes, and the network has the class {other!r}, whose number "
        "nothing says; leave it out, or evaluate a network whose classes are called by ImageNet's WordNet IDs"
    )


def without_absent(logits: Tensor, present: Tensor) -> Tensor:
    """`logits` [N, K] with −∞ for classes that are not `present`, int64 labels: neither predictions nor probability.

    Negative ones are of no class.
    """
    absent = torch.ones(logits.shape[1], dtype=torch.bool)
    absent[present[present >= 0]] = False
    return logits.masked_fill(absent, -torch.inf)


def real_accuracy(predicted: list[int], wanted: list[set[int]]) -> dict[str, Any]:
    """The share of images with labels at all whose prediction is among them (Beyer et al., arXiv:2006.07159).

    `top_1` is None where no image has any.
    """
    hits = [label in labels for label, labels in zip(predicted, wanted, strict=True) if labels]
    top_1 = sum(hits) / len(hits) if hits else None
    return {"samples": len(hits), "without_labels": len(wanted) - len(hits), "top_1": top_1}


def real_sets(file: Path, data_set: DataSet) -> list[set[int]]:
    """ReaL's labels of each sample, ImageNet's: the file lists those of ILSVRC2012_val_00000001 … in order."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        listed = [{int(label) for label in labels} for labels in content]
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give real.json of the ReaL labels") from None
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{file} is not a list of lists of labels; give real.json of the ReaL labels") from None
    count = len(imagenet_names().keys)
    beyond = next((label for labels in listed for label in labels if not 0 <= label < count), None)
    if beyond is not None:
        raise UserError(
            f"{file} has the label {beyond}, and ImageNet's are 0 … {count - 1}; give real.json of the ReaL labels"
        )
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
