"""What a file that `ffcv-train export` wrote says of its network, so that our commands take it as a checkpoint."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ffcv_train.models.checkpoint import FORMAT
from ffcv_train.system.files import parse_json

_TEXTS = ("arch", "crop", "interpolation", "weights", "producer")


def as_checkpoint(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """`content` of the file at `path` as a checkpoint of ours holds it, where an export says what the tensors are.

    That is said in the header of safetensors, in the `.json` beside a file for torchvision, in the `config.json` of a
    folder for timm, in the words of `publish.description.Description`. What another program wrote stays as it is.
    """
    if not all(isinstance(value, Tensor) for value in content.values()):
        return content
    for read in (_of_header, _of_neighbour, _of_timms_folder):
        # There is nothing, or what others put in its place.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError):
            found = _checkpoint(read(path), content)
            if found is not None:
                return found
    return content


def _of_header(path: Path) -> Mapping[str, Any]:
    with safetensors.safe_open(path, "pt") as opened:
        texts = opened.metadata() or {}
    return {key: text if key in _TEXTS else parse_json(text) for key, text in texts.items()}


def _of_neighbour(path: Path) -> Mapping[str, Any]:
    return parse_json(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))


def _of_timms_folder(path: Path) -> Mapping[str, Any]:
    if path.name != "model.safetensors":
        return {}
    stated = parse_json((path.parent / "config.json").read_text(encoding="utf-8"))
    return {**stated["ffcv_train"], "class_names": stated.get("label_names")}


def _checkpoint(stated: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    if not str(stated["producer"]).startswith("ffcv_train "):
        return None
    names, count, averaged = stated.get("class_names"), stated["num_classes"], stated["weights"] == "ema"
    if type(count) is not int or (names is not None and len(names) != count):
        return None
    if not all(isinstance(name, str) for name in (stated["arch"], *(names or ()))):
        return None
    return {
        "format": FORMAT,
        "model": {} if averaged else tensors,
        "ema": tensors if averaged else None,
        "arch": stated["arch"],
        "num_classes": count,
        "class_names": names,
        "normalisation": {key: [float(value) for value in stated[key]] for key in ("mean", "std")},
        "epoch": stated.get("epoch"),
        "config": {
            "model": {"arch": stated["arch"], "use_blurpool": stated["use_blurpool"]},
            "data": {},
            "validation": {
                "resolution": [stated["side"]],
                **{key: stated[key] for key in ("crop", "crop_ratio", "interpolation")},
            },
        },
    }
