"""The options of suites, for the commands that run them."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffcv_train.data.loading.sampling import RULES
from ffcv_train.evaluation.suites.corruptions import MADE_ONLY, read_as_it_is
from ffcv_train.evaluation.suites.run import SUITES
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path


class _Option(NamedTuple):
    name: str
    """On the command line, without dashes before it"""
    kind: str
    """file, files or whole: a whole number of at least 0"""
    suites: tuple[str, ...]
    """Which take it"""
    metavar: str
    help: str
    renamed: str = ""
    """Its name among `SuiteOptions`, where that is another"""

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def field(self) -> str:
        return self.renamed or self.key


_VARIANTS = ("v2", "a", "r", "sketch")
"""Data sets of ImageNet's classes, as they are called for short"""
_OPTIONS = (
    _Option("calibrate-on", "file", ("calibration",), "DATA", "fit the temperature to this data set"),
    _Option(
        "split-seed",
        "whole",
        ("calibration",),
        "N",
        "of the random half of the validation set that the temperature is fitted to else",
    ),
    _Option("train-set", "file", ("groups", "ood"), "DATA", "the training set [the checkpoint's data.train_dataset]"),
    _Option("many-over", "whole", ("groups",), "N", "more samples are many"),
    _Option("few-under", "whole", ("groups",), "N", "fewer samples are few"),
    _Option("ood-data", "files", ("ood",), "DATA", "data sets of other things"),
    _Option("knn-k", "whole", ("ood",), "K", "which nearest neighbour", renamed="neighbour"),
    _Option(
        "corrupted-data",
        "file",
        ("corruptions",),
        "DIR",
        "ImageNet-C or CIFAR-10-C, unpacked [made from the images]",
    ),
    _Option("corruption-seed", "whole", ("corruptions",), "N", "of what is made"),
    _Option(
        "corruption-samples",
        "whole",
        ("corruptions",),
        "N",
        "make them of so many samples, drawn by the seed; 0: of all",
    ),
    _Option(
        "frost-images",
        "file",
        ("corruptions",),
        "DIR",
        "the authors' photographs of frost [package imagecorruptions]",
    ),
    _Option("variant-data", "files", ("variants",), "DATA", "ImageNet-V2, -A, -R, Sketch, matched by class name"),
    _Option("real-labels", "file", ("variants",), "FILE", "real.json, ReaL's labels of ImageNet's val set"),
)
"""Beside --suite; a number's default is that of `SuiteOptions`"""


def add_suite_options(group: argparse._ArgumentGroup, beside: Sequence[str] = ()) -> None:
    """`--suite` and what the suites take; `beside` are names that it takes for what the command does itself."""
    names = ", ".join((*SUITES, *beside))
    group.add_argument("--suite", metavar="A,B,…", help=f"more than accuracy: {names} (docs/suites.md)")
    for option in _OPTIONS:
        about = f"{', '.join(option.suites)}: {option.help}"
        if option.kind == "whole":
            more: dict[str, Any] = {"help": f"{about} [{getattr(SuiteOptions(), option.field)}]"}
        else:
            more = {"type": expand_path, "help": about} | ({"nargs": "+"} if option.kind == "files" else {})
        group.add_argument(f"--{option.name}", metavar=option.metavar, **more)


def suite_names(options: Any) -> tuple[str, ...]:
    """What --suite names, known or not."""
    return tuple(name.strip() for name in options.suite.split(",")) if options.suite is not None else ()


def suite_options(
    options: Any, trained_on: Mapping[str, Any], part_file: str = "", beside: Sequence[str] = ()
) -> SuiteOptions:
    """What the command line, as parsed, said of suites. Raises `UserError`.

    `trained_on` is the section data of the training's configuration, empty where that is not known, and counts unless
    --train-set names another; `part_file` as `SuiteOptions` has it; `beside` as `add_suite_options` had it.
    """
    names = suite_names(options)
    for name in names:
        if name not in (*SUITES, *beside):
            raise UserError(_unknown(name, beside))
        if names.count(name) > 1:
            raise UserError(f"--suite names {name!r} twice; name each once")
    names = tuple(name for name in names if name in SUITES)
    found: dict[str, Any] = {"suites": names, "part_file": part_file}
    for option in _OPTIONS:
        given = getattr(options, option.key)
        if given is None or (option.kind == "file" and not given):
            continue
        if not set(option.suites) & set(names):
            takers = " and ".join(option.suites)
            raise UserError(f"--{option.name} is for --suite {takers}; add the suite, or leave it out")
        if option.key in MADE_ONLY and options.corrupted_data:
            raise read_as_it_is(option.key, given, options.corrupted_data)
        if option.kind == "whole":
            given = whole(given, f"--{option.name}")
        found[option.field] = tuple(given) if option.kind == "files" else given
    if "train_set" not in found:
        sampling = str(trained_on.get("sampling", ""))
        found["train_set"] = str(trained_on.get("train_dataset", ""))
        found["train_subset"] = str(trained_on.get("subset", ""))
        found["train_weights"] = "" if sampling in RULES else sampling
    made = SuiteOptions(**found)
    if not made.neighbour:
        raise UserError("--knn-k must be at least 1")
    if made.few_under > made.many_over + 1:
        raise UserError(f"--few-under {made.few_under} and --many-over {made.many_over} overlap; lower --few-under")
    return made


def _unknown(name: str, beside: Sequence[str]) -> str:
    short = name.removeprefix("imagenet-")
    if short == "real":
        return f"--suite names {name!r}, labels of their own; give --suite variants --real-labels real.json"
    if short in _VARIANTS:
        return f"--suite names {name!r}, a data set of its own; give --suite variants --variant-data DATA"
    return f"--suite names {name!r}, which is no suite; there are {', '.join((*SUITES, *beside))}"


def part_file(output: Path | None) -> str:
    """`SuiteOptions.part_file` of a command that writes to `output`."""
    return str(output.with_suffix("")) if output is not None else ""


def suite_words(options: Any) -> list[str]:
    """The words by which another command is given the same suites."""
    if options.suite is None:
        return []
    words = [f"--suite={options.suite}"]
    for option in _OPTIONS:
        given = getattr(options, option.key)
        if given:
            words += [f"--{option.name}", *given] if option.kind == "files" else [f"--{option.name}={given}"]
    return words


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
