"""Configurations in which published weights bring their preprocessing, below what files and the command line tell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ffcv_train.config.read import load_config, told_options
from ffcv_train.config.schema import RunConfig
from ffcv_train.models.opening import Checkpoint, open_checkpoint
from ffcv_train.models.preset import TRAINING_KEYS, Preset, preset_of
from ffcv_train.system.files import parse_json
from ffcv_train.training.resume import find_checkpoint


class RunOptions(NamedTuple):
    """The resolved command line of a training run."""

    config: RunConfig
    taken: str = ""
    """In words, what it took from model.weights"""
    weights: Checkpoint | None = None
    """What model.weights names, where it had to be opened to be asked"""


def load_run_config(argv: Sequence[str], description: str = "") -> RunOptions:
    """The configuration of a training run, above what its model.weights state.

    A run that is continued keeps what it took when it began. Raises `UserError`.
    """
    config = load_config(RunConfig, argv, description)
    if not config.model.weights:
        return RunOptions(config)
    before = _of_the_run(config)
    if before is not None:
        return RunOptions(lay_preset(before, argv, TRAINING_KEYS)[0])
    weights = open_checkpoint(config.model.weights, config.model.arch)
    preset = preset_of(weights, config.model.arch)
    if preset is None:
        return RunOptions(config, weights=weights)
    return RunOptions(*lay_preset(preset, argv, TRAINING_KEYS), weights)


def lay_preset(
    preset: Preset, argv: Sequence[str], keys: Sequence[str], base: Mapping[str, Any] | None = None
) -> tuple[RunConfig, str]:
    """The configuration of `argv` over `base` over those of the preset's options that `keys` name; what was taken."""
    layer = {key: value for key, value in preset.untold(told_options(RunConfig, argv)).items() if key in keys}
    content: dict[str, dict[str, Any]] = {}
    for key, value in layer.items():
        section, name = key.split(".")
        content.setdefault(section, {})[name] = value
    for section, values in (base or {}).items():
        content.setdefault(section, {}).update(values)
    return load_config(RunConfig, argv, base=content), preset.says(layer)


def _of_the_run(config: RunConfig) -> Preset | None:
    """What the run that is to be continued took, as its folder says; None for a new run, or where that is not found."""
    path = find_checkpoint(config)
    if path is None:
        return None
    try:
        content = parse_json((path.parent / "params.json").read_text(encoding="utf-8"))["config"]
        options = {key: content[key.split(".")[0]][key.split(".")[1]] for key in TRAINING_KEYS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Preset(str(path), options)
