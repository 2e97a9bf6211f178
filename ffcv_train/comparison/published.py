"""Published figures of MaxSup, of its paper and its repository, and which runs of ours they may stand beside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAPER = "arXiv:2502.15798"
_REPOSITORY = "https://github.com/ZhouYuxuanYX/Maximum-Suppression-Regularization"
ADDRESSES = {
    PAPER: "https://arxiv.org/abs/2502.15798",
    "MaxSup repository, README": _REPOSITORY,
    "MaxSup repository, LT": f"{_REPOSITORY}/tree/main/LT",
    "MaxSup repository, OOD": f"{_REPOSITORY}/tree/main/OOD",
}
"""Of each source"""


@dataclass(frozen=True)
class TrainingClasses:
    """What tells a data set: its training images of each class, and the names of these, where it has names."""

    counts: tuple[int, ...]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PublishedRow:
    """Figures of one criterion, where they stand, and what they are of."""

    source: str
    """One of `ADDRESSES`"""
    data: str
    epochs: int | None
    """Of training; None where it is not known"""
    caveat: str
    """How their setting differs from that of its other figures, or of ours; may be empty"""
    values: Mapping[str, float]
    """By metric of a comparison, fractions in [0, 1]"""


@dataclass(frozen=True)
class _Table:
    data: str
    arch: str
    epochs: int | None
    figures: Mapping[str, Mapping[str, float]]
    """By metric, then by criterion"""
    source: str = PAPER
    caveat: str = ""
    probed: str = ""
    """Data set of the linear probe that the figures need"""


def _percent(metric: str, **figures: float) -> dict[str, dict[str, float]]:
    return {metric: {loss: round(value / 100, 6) for loss, value in figures.items()}}


def _top_1(*figures: float) -> dict[str, dict[str, float]]:
    return _percent("top_1", **dict(zip(("ce", "ls", "zipf", "ols", "maxsup", "logit_penalty"), figures, strict=False)))


def _columns(keys: Sequence[str], **rows: Sequence[float]) -> dict[str, dict[str, float]]:
    return {key: {loss: row[place] for loss, row in rows.items()} for place, key in enumerate(keys)}


_DEIT = "deit_small_patch16_224"
_GRID = "L2 penalty from 45 log-spaced values 1e-06 to 1e+05"
_TABLES = (
    _Table("ImageNet", "resnet18", 200, _top_1(69.09, 69.54, 69.31, 69.45, 69.96, 68.48)),
    _Table("ImageNet", "resnet50", 200, _top_1(76.41, 76.91, 76.73, 77.23, 77.69, 76.73)),
    _Table("ImageNet", "resnet50", 90, _top_1(76.44, 76.65, 76.89, 76.81, 77.08, 74.21)),
    _Table("ImageNet", "resnet101", 200, _top_1(75.96, 77.37, 76.91, 77.71, 78.18, 77.20)),
    _Table("ImageNet", "mobilenet_v2", 200, _top_1(71.40, 71.61, 71.16, 71.63, 72.08, 71.13)),
    _Table(
        "ImageNet",
        _DEIT,
        300,
        _top_1(74.39, 76.08, 75.89, 76.16, 76.49),
        caveat="DeiT's recipe without Mixup and CutMix",
    ),
    _Table(
        "ImageNet",
        _DEIT,
        300,
        _percent("top_1", regularization_only=75.98, error_amplification_only=73.63),
        caveat="its ablation with constant α, in which ce has 74.21, ls 75.91 and maxsup 76.12",
    ),
    _Table("CIFAR-100", "cifar_resnet18", 200, _top_1(76.16, 77.05, 76.21, 77.33, 77.82, 76.41)),
    _Table("CIFAR-100", "cifar_resnet50", 200, _top_1(78.69, 78.88, 78.75, 78.79, 79.15, 78.90)),
    _Table(
        "ImageNet",
        "resnet50",
        None,
        _columns(
            ("d_within_train", "d_within_val", "d_total_train", "d_total_val", "r_squared_train", "r_squared_val"),
            ce=(0.3114, 0.3313, 0.5212, 0.5949, 0.4025, 0.4451),
            ls=(0.2632, 0.2543, 0.4862, 0.4718, 0.4690, 0.4611),
            ols=(0.2707, 0.2820, 0.6672, 0.6570, 0.5943, 0.5708),
            zipf=(0.2611, 0.2932, 0.5813, 0.5628, 0.5522, 0.4790),
            maxsup=(0.2926, 0.2998, 0.6081, 0.5962, 0.5188, 0.4972),
            logit_penalty=(0.2840, 0.3144, 0.7996, 0.7909, 0.6448, 0.6024),
        ),
    ),
    _Table(
        "ImageNet",
        "resnet50",
        None,
        _percent("transfer", ce=91.74, ls=90.14, ols=90.29, maxsup=91.00),
        caveat=f"transfer to CIFAR-10, {_GRID}; a narrower grid gave 81.43 (ce), 74.58 (ls) and 81.02 (maxsup)",
        probed="CIFAR-10",
    ),
    _Table(
        "ImageNet",
        "resnet50",
        None,
        _percent("transfer", ce=75.35, ls=71.28, ols=73.13, maxsup=73.93),
        caveat=f"transfer to CIFAR-100, {_GRID}",
        probed="CIFAR-100",
    ),
    _Table("CUB-200", "resnet50", None, _top_1(80.88, 81.96, 81.40, 82.33, 82.53), "MaxSup repository, README"),
    _Table("Stanford Cars", "resnet50", None, _top_1(90.27, 91.64, 90.99, 91.96, 92.25), "MaxSup repository, README"),
    *(
        _Table(
            f"CIFAR-10-LT, imbalance {imbalance}",
            "cifar_resnet32",
            200,
            _percent("top_1", **figures),
            "MaxSup repository, LT",
            "a normalised, de-confounded classifier (arXiv:2009.12991), which these runs do not have",
        )
        for imbalance, figures in (
            (50, {"focal": 76.8, "ls": 80.5, "maxsup": 81.4}),
            (100, {"focal": 74.7, "ls": 76.4, "maxsup": 76.4}),
        )
    ),
    # Its NLL and ECE are not set beside ours: that "NLL" is the training criterion, penalty or smoothing included, that
    # ECE a mean over batches.
    _Table(
        "CIFAR-10",
        "cifar_resnet50",
        200,
        _percent("corrupted", ls=39.51, maxsup=39.51),
        "MaxSup repository, OOD",
        "CIFAR-10-C's files, trained without augmentation",
    ),
)


def published(
    arch: str, epochs: int, loss: str, trained: TrainingClasses, probed: TrainingClasses | None = None
) -> list[PublishedRow]:
    """The rows of `loss` that may stand beside runs of `arch` on the data set `trained`, `probed` the linear probe's.

    Architecture and data set are the row's; its length of training may differ and is told with it, the nearest one
    where several are published.
    """
    data, transfer = data_set_of(trained), data_set_of(probed) if probed else ""
    rows: dict[tuple[str, ...], PublishedRow] = {}
    for table in _TABLES:
        values = {metric: figures[loss] for metric, figures in table.figures.items() if loss in figures}
        fits = table.data == data and (arch == table.arch or (table.arch == _DEIT and arch.startswith(f"{_DEIT}.")))
        if not values or not fits or table.probed not in ("", transfer):
            continue
        row = PublishedRow(table.source, table.data, table.epochs, table.caveat, values)
        other = rows.get(tuple(values))
        if other is None or _distance(row, epochs) < _distance(other, epochs):
            rows[tuple(values)] = row
    return list(rows.values())


def data_set_of(classes: TrainingClasses) -> str:
    """Which data set of the published figures this is, "" where it is none of them.

    Told by the training images of each class: those of CUB-200 (29 or 30, 5,994 in all), Stanford Cars (8,144 of 196
    classes), CIFAR-10 and CIFAR-100 (5,000 and 500) and the exponential tails of CIFAR-10-LT, in the classes' order;
    ImageNet's are at most 1,300, and up to one in a hundred images may be left out. Names, where there are any, must be
    CIFAR's.
    """
    counts, total = classes.counts, sum(classes.counts)
    match len(counts):
        case 10 if _named(classes, _CIFAR_10):
            if set(counts) == {5000}:
                return "CIFAR-10"
            for imbalance in (50, 100):
                tail = [5000 * imbalance ** (-place / 9) for place in range(10)]
                if all(abs(count - size) <= 1 for count, size in zip(counts, tail, strict=True)):
                    return f"CIFAR-10-LT, imbalance {imbalance}"
        case 100 if set(counts) == {500} and _named(classes, _CIFAR_100):
            return "CIFAR-100"
        case 196 if total == 8144:
            return "Stanford Cars"
        case 200 if total == 5994 and set(counts) == {29, 30}:
            return "CUB-200"
        case 1000 if max(counts) <= 1300 and 0.99 * 1_281_167 <= total <= 1_281_167:
            return "ImageNet"
    return ""


def _distance(row: PublishedRow, epochs: int) -> float:
    return abs(math.log(row.epochs / epochs)) if row.epochs else 0.0


def _named(classes: TrainingClasses, names: str) -> bool:
    found = classes.names
    return found is None or {name.lower().replace(" ", "_") for name in found} == set(names.split())


_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
