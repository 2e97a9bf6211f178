"""The options of suites, for the commands that run them."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffcv_train.evaluation.suites.run import SUITES
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.metrics.groups import FEW_UNDER, MANY_OVER
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

_TAKERS = {"calibrate_on": ("calibration",), "train_set": ("groups", "ood"), "ood_data": ("ood",)}
_TAKERS |= {"corrupted_data": ("corruptions",), "frost_images": ("corruptions",)}
_TAKERS |= {"variant_data": ("variants",), "real_labels": ("variants",)}
"""Which suites take an option"""


def add_suite_options(group: argparse._ArgumentGroup) -> None:
    """`--suite` and what the suites take."""
    group.add_argument("--suite", metavar="A,B,…", help=f"more than accuracy: {', '.join(SUITES)} (docs/suites.md)")
    group.add_argument(
        "--calibrate-on", type=expand_path, metavar="DATA", help="calibration: fit the temperature to this data set"
    )
    group.add_argument(
        "--split-seed",
        metavar="N",
        default="0",
        help="calibration: of the random half of the validation set that the temperature is fitted to else [0]",
    )
    group.add_argument(
        "--train-set",
        type=expand_path,
        metavar="DATA",
        help="groups, ood: the training set [the checkpoint's data.train_dataset]",
    )
    group.add_argument(
        "--many-over", metavar="N", default=str(MANY_OVER), help=f"groups: more samples are many [{MANY_OVER}]"
    )
    group.add_argument(
        "--few-under", metavar="N", default=str(FEW_UNDER), help=f"groups: fewer samples are few [{FEW_UNDER}]"
    )
    group.add_argument("--ood-data", nargs="+", type=expand_path, metavar="DATA", help="ood: data sets of other things")
    group.add_argument("--knn-k", metavar="K", default="50", help="ood: which nearest neighbour [50]")
    group.add_argument(
        "--corrupted-data",
        type=expand_path,
        metavar="DIR",
        help="corruptions: ImageNet-C or CIFAR-10-C, unpacked [made from the images]",
    )
    group.add_argument("--corruption-seed", metavar="N", default="0", help="corruptions: of what is made [0]")
    group.add_argument(
        "--frost-images",
        type=expand_path,
        metavar="DIR",
        help="corruptions: the authors' photographs of frost [package imagecorruptions]",
    )
    group.add_argument(
        "--variant-data",
        nargs="+",
        type=expand_path,
        metavar="DATA",
        help="variants: ImageNet-V2, -A, -R, Sketch, matched by class name",
    )
    group.add_argument(
        "--real-labels",
        type=expand_path,
        metavar="FILE",
        help="variants: real.json, ReaL's labels of ImageNet's val set",
    )


def suite_options(options: Any, config: Mapping[str, Any]) -> SuiteOptions:
    """What the command line, as parsed, said of suites; `config` is the checkpoint's. Raises `UserError`."""
    names = tuple(name.strip() for name in options.suite.split(",")) if options.suite is not None else ()
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite names {name!r}, which is no suite; there are {', '.join(SUITES)}")
        if names.count(name) > 1:
            raise UserError(f"--suite names {name!r} twice; name each once")
    for key, takers in _TAKERS.items():
        if getattr(options, key) and not set(takers) & set(names):
            raise UserError(
                f"--{key.replace('_', '-')} is for --suite {' and '.join(takers)}; add the suite, or leave it out"
            )
    neighbour = whole(options.knn_k, "--knn-k")
    if not neighbour:
        raise UserError("--knn-k must be at least 1")
    many, few = whole(options.many_over, "--many-over"), whole(options.few_under, "--few-under")
    if few > many + 1:
        raise UserError(f"--few-under {few} and --many-over {many} overlap; lower --few-under")
    train_set = config.get("data", {}).get("train_dataset", "")
    return SuiteOptions(
        suites=names,
        calibrate_on=options.calibrate_on or "",
        split_seed=whole(options.split_seed, "--split-seed"),
        train_set=options.train_set or train_set,
        many_over=many,
        few_under=few,
        ood_data=tuple(options.ood_data or ()),
        neighbour=neighbour,
        corrupted_data=options.corrupted_data or "",
        corruption_seed=whole(options.corruption_seed, "--corruption-seed"),
        frost_images=options.frost_images or "",
        variant_data=tuple(options.variant_data or ()),
        real_labels=options.real_labels or "",
        part_file=str(Path(options.output).with_suffix("")) + "_corruptions" if options.output else "",
    )


def suite_words(options: Any, out: SuiteOptions) -> list[str]:
    """The words by which another command is given the same suites."""
    if not out.suites:
        return []
    words = [f"--suite={','.join(out.suites)}", f"--split-seed={out.split_seed}", f"--knn-k={out.neighbour}"]
    words += [f"--many-over={out.many_over}", f"--few-under={out.few_under}"]
    words += [f"--calibrate-on={out.calibrate_on}"] if out.calibrate_on else []
    words += [f"--train-set={options.train_set}"] if options.train_set else []
    words += [f"--corrupted-data={out.corrupted_data}"] if out.corrupted_data else []
    words += [f"--frost-images={out.frost_images}"] if out.frost_images else []
    words += [f"--corruption-seed={out.corruption_seed}"]
    words += [f"--real-labels={out.real_labels}"] if out.real_labels else []
    words += ["--variant-data", *out.variant_data] if out.variant_data else []
    return words + (["--ood-data", *out.ood_data] if out.ood_data else [])


def whole(text: str, name: str) -> int:
    """A whole number of at least 0. Raises `UserError`."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise UserError(f"{name} must be a whole number from 0 to 2147483647, not {text!r}")
    return int(text)


def tau_of(text: str | None) -> float | None:
    """--tau. Raises `UserError`."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise UserError(f"--tau must be a number from 0 to 10, not {text!r}")
    return value
