"""How the images of published weights were cut, resized and normalised, as their library or checkpoint states it."""

import hashlib
import math
import mmap
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torchvision

from ffcv_train.models.factory import find_arch
from ffcv_train.models.opening import Checkpoint
from ffcv_train.models.published import arch_of, described

_INTERPOLATIONS = ("bilinear", "bicubic")
_TOGETHER = (("data.mean", "data.std"), ("resolution.min_res", "resolution.max_res"))
EVALUATION_KEYS = (
    "model.arch",
    "validation.resolution",
    "validation.crop",
    "validation.crop_ratio",
    "validation.interpolation",
    "data.mean",
    "data.std",
)
TRAINING_KEYS = (*EVALUATION_KEYS, "resolution.min_res", "resolution.max_res", "data.interpolation")
_SHOWN = {
    "model.arch": "architecture",
    "validation.resolution": "side",
    "validation.crop": "crop",
    "validation.crop_ratio": "crop ratio",
    "validation.interpolation": "interpolation",
    "resolution.max_res": "training side",
    "data.interpolation": "training interpolation",
    "data.mean": "mean",
    "data.std": "std",
}


@dataclass(frozen=True)
class Preset:
    """What stated options of a run, by "section.key", are for weights."""

    source: str
    """Whose statement it is"""
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What is stated and has no option here"""

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) per channel, of pixels in [0, 1]."""
        if "data.mean" not in self.options:
            return None
        return self.options["data.mean"], self.options["data.std"]

    def untold(self, told: Collection[str]) -> dict[str, Any]:
        """The options without those that were `told`, and without their partners: mean and std are one thing."""
        partners = {key for group in _TOGETHER if {*group} & {*told} for key in group}
        return {key: value for key, value in self.options.items() if key not in told and key not in partners}

    def says(self, taken: Mapping[str, Any]) -> str:
        """In words, which of its options were `taken`."""
        shown = [f"{word} {_text(taken[key])}" for key, word in _SHOWN.items() if key in taken]
        notes = "".join(f"; {note}" for note in self.notes)
        return f"took {', '.join(shown)} from {self.source}{notes}" if shown else ""


def preset_of(checkpoint: Checkpoint, arch: str) -> Preset | None:
    """What is stated for the weights of `arch` in `checkpoint`; None where nothing is.

    A checkpoint of ours says it. Of torchvision's weights the file name or the content, by its SHA-256, tells which
    they are; of others is taken what all weights of this architecture have in common. timm states it in `config.json`
    beside the file, with the architecture, else for the name and tag of the architecture: the side and crop of the
    test, and the side of training.
    """
    own = _of_checkpoint(checkpoint.source, checkpoint.content)
    if own is not None:
        return own
    stated = described(checkpoint.path)
    if stated is not None:
        preset = of_timm(stated)
        return replace(preset, options={"model.arch": f"timm/{stated['architecture']}", **preset.options})
    named = arch_of(checkpoint.source) if checkpoint.source.startswith("torchvision:") else ""
    library, name = find_arch(named or arch)
    if library == "torchvision":
        found = _of_torchvision(name, checkpoint.path)
        return replace(found, options={"model.arch": named, **found.options}) if found and named else found
    if library == "timm":
        import timm

        published = timm.get_pretrained_cfg(name)
        if published is None:
            return None
        preset = of_timm(published.to_dict())
        if "." not in name and len(timm.list_pretrained(f"{name}.*")) > 1:
            told = f"the default of {name}; another's are told by --model.arch=timm/{name}.TAG"
            preset = replace(preset, notes=(*preset.notes, told))
        return preset
    return None


def of_timm(published: Mapping[str, Any]) -> Preset:
    """The preset in a `pretrained_cfg` of timm, as timm's own validation resolves it."""
    from timm.data import resolve_data_config

    tested, trained = (
        resolve_data_config({}, pretrained_cfg=dict(published), use_test_size=test) for test in (True, False)
    )
    notes = []
    if tested["crop_mode"] != "center":
        notes.append(f"its crop mode {tested['crop_mode']} is not one of ours, which is the centre")
    options = {
        **_sides(tested["input_size"], trained["input_size"]),
        "validation.crop": "torchvision",
        "validation.crop_ratio": min(float(tested["crop_pct"]), 1.0),
        **_interpolations(tested["interpolation"], trained["interpolation"]),
        "data.mean": tuple(map(float, tested["mean"])),
        "data.std": tuple(map(float, tested["std"])),
    }
    tag = f".{published['tag']}" if published.get("tag") else ""
    return Preset(f"timm's {published['architecture']}{tag}", options, tuple(notes))


def _of_checkpoint(path: str, content: Mapping[str, Any]) -> Preset | None:
    """What a checkpoint of ours says."""
    stated, config = content.get("normalisation"), content.get("config")
    if not isinstance(stated, Mapping) or "mean" not in stated or "std" not in stated:
        return None
    options: dict[str, Any] = {}
    if isinstance(config, Mapping):
        found = {key: _value(config, key) for key in (*EVALUATION_KEYS[1:5], "data.interpolation")}
        side = _value(config, "resolution.max_res")
        found |= {"resolution.min_res": side, "resolution.max_res": side}
        options = {key: value for key, value in found.items() if value is not None}
    options |= {f"data.{name}": tuple(float(x) for x in stated[name]) for name in ("mean", "std")}
    return Preset(path, options)


def _value(config: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    values = config.get(section)
    value = values.get(name) if isinstance(values, Mapping) else None
    return tuple(value) if isinstance(value, list) else value


def _of_torchvision(name: str, path: Path) -> Preset | None:
    published = list(torchvision.models.get_model_weights(name))
    if not published:
        return None
    digest = _digest(published, path)
    known = [weights for weights in published if digest and _hash_of(weights) == digest]
    presets = [_torchvision_options(weights.transforms()) for weights in known or published]
    common = {key: value for key, value in presets[0].items() if all(other[key] == value for other in presets)}
    if not known:
        differing = ", ".join(_SHOWN[key] for key in presets[0] if key not in common and key in _SHOWN)
        but = f", and which differ in {differing}" if differing else ""
        return Preset(f"torchvision's weights of {name}, none of which this file is{but}", common)
    (weights,) = known
    return Preset(f"torchvision's {type(weights).__name__}.{weights.name}", common)


def _torchvision_options(preset: Any) -> dict[str, Any]:
    side, resized = preset.crop_size[0], preset.resize_size[0]
    return {
        **_sides((3, side, side), (3, side, side)),
        "validation.crop": "torchvision",
        "validation.crop_ratio": side / resized,
        **_interpolations(preset.interpolation.value, preset.interpolation.value),
        "data.mean": tuple(preset.mean),
        "data.std": tuple(preset.std),
    }


def _sides(tested: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
    """The options of square sides of images [C, H, W]."""
    if tested[1] != tested[2] or trained[1] != trained[2]:
        return {}
    return {
        "validation.resolution": (tested[2],),
        "resolution.min_res": trained[2],
        "resolution.max_res": trained[2],
    }


def _interpolations(tested: str, trained: str) -> dict[str, str]:
    named = {"validation.interpolation": tested, "data.interpolation": trained}
    return {key: value for key, value in named.items() if value in _INTERPOLATIONS}


def _hash_of(weights: Any) -> str:
    """The first digits of the SHA-256 of a published file, which its name ends with."""
    found = re.search(r"-([0-9a-f]{8,})\.", weights.url)
    return found[1] if found else ""


def _digest(published: Sequence[Any], path: Path) -> str:
    """Which of the `published` weights a file is, by their `_hash_of`; "" where it is none."""
    hashes = [known for known in map(_hash_of, published) if known]
    named = [known for known in hashes if f"-{known}." in path.name]
    if named:
        return named[0]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        digest = hashlib.sha256(content).hexdigest()
    return next((known for known in hashes if digest.startswith(known)), "")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
