"""Configurations in which published weights bring their preprocessing, below what files and the command line tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from ffcv_train.config.read import load_config, told_options
from ffcv_train.config.schema import RunConfig
from ffcv_train.models.preset import TRAINING_KEYS, Preset, preset_of
from ffcv_train.system.files import parse_json
from ffcv_train.training.resume import find_checkpoint


def load_run_config(argv: Sequence[str], description: str = "") -> tuple[RunConfig, str]:
    """The configuration of a training run, and in words what it took from `model.weights`.

    A run that is continued keeps what it took when it began. Raises `UserError`.
    """
    config = load_config(RunConfig, argv, description)
    if not config.model.weights:
        return config, ""
    before = _of_the_run(config)
    preset = before or preset_of(config.model)
    if preset is None:
        return config, ""
    config, taken = lay_preset(preset, argv, TRAINING_KEYS)
    return config, "" if before else taken


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
