"""Weights from a file: our checkpoints, torchvision's, timm's, plain state dicts, safetensors."""

import argparse
import math
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ffcv_train.models.checkpoint import DamagedCheckpointError, check_container, check_tensors
from ffcv_train.system.errors import UserError

# Where training programs keep the state dict, and its averaged twin, in what they save.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
_EMA_CONTAINERS = ("ema", "state_dict_ema", "model_ema")
# torchvision's published DenseNets say norm.1 where its code says norm1.
_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did."""

    path: str
    loaded: int  # tensors taken
    replaced: tuple[str, ...] = field(default=())  # head's keys, of another class count: at zero now
    file_classes: int = 0  # the file's class count where the head was replaced
    classes: int = 0  # the model's class count where the head was replaced
    zeroed: bool = True  # a replaced head starts at zero
    dropped: tuple[str, ...] = field(default=())  # keys of auxiliary heads that this model is built without

    def __str__(self) -> str:
        text = f"{self.loaded} tensors from {self.path}"
        if self.replaced:
            start = "at zero" if self.zeroed else "at random, for zeros before its ReLU would not learn"
            text += f"; new head {start}, as the file's has {self.file_classes} classes: {', '.join(self.replaced)}"
            if self.zeroed:
                text += f"; cross-entropy starts at ln {self.classes} = {math.log(self.classes):.3f}"
        return text


def read_state_dict(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU, by name, without the prefixes of DDP and torch.compile.

    Takes files of torch.save (a state dict, or one in "model", "state_dict", "model_state_dict") and safetensors;
    executes nothing from the file. With `ema` the averaged weights, where the file has them. Keys of FFCV's blurred
    convolutions become those of the plain ones. Raises `UserError` for what is not a checkpoint.
    """
    return _state_dict(_read(Path(path)), Path(path), ema)


def read_normalisation(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel, of pixels in [0, 1], that a checkpoint of ours carries; None in other files."""
    stated = _read(Path(path)).get("normalisation")
    if not isinstance(stated, Mapping) or "mean" not in stated or "std" not in stated:
        return None
    return tuple(float(x) for x in stated["mean"]), tuple(float(x) for x in stated["std"])


def load_weights(
    model: nn.Module, path: str | Path, arch: str = "", *, ema: bool = True, blurred: bool | None = None
) -> WeightsReport:
    """Load a checkpoint (see `read_state_dict`) into `model`; every key and shape must fit, except in the head.

    A classifier head whose class count differs from the file's starts at zero (as BiT's, arXiv:1912.11370), which the
    report says; one that a ReLU follows, SqueezeNet's, keeps its initialisation, for at zero it would have no gradient.
    `ema` takes averaged weights where the file has them, as timm does. `arch` is the
    model's name in errors; `blurred` says whether it has BlurPool, None asks nothing. Raises `UserError` where the
    file does not fit, or its network was trained with BlurPool and this one has none.
    """
    content = _read(Path(path))
    name = arch or type(model).__name__
    if blurred is False and _has_blurpool(content):
        raise UserError(f"{path} was trained with BlurPool, which {name} lacks here; set model.use_blurpool=1")
    state = _state_dict(content, Path(path), ema)
    own = model.state_dict()
    dropped = [key for key in state if key not in own and getattr(model, key.split(".")[0], 0) is None]
    for key in dropped:
        del state[key]

    wrong = [key for key in state if key in own and state[key].shape != own[key].shape]
    head = head_names(model)
    replaced = [key for key in wrong if key.rpartition(".")[0] in head and state[key].shape[1:] == own[key].shape[1:]]
    file_classes = len(state[replaced[0]]) if replaced else 0
    zeroed = not _relu_follows(model, head)
    for key in replaced:
        wrong.remove(key)
        state[key] = torch.zeros_like(own[key]) if zeroed else own[key]
    classes = len(own[replaced[0]]) if replaced else 0
    if wrong:
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    else:
        # The modules' own loading renames keys of older versions, so it, not a comparison of names, finds what lacks.
        result = model.load_state_dict(state, strict=False)
        missing, unexpected = result.missing_keys, result.unexpected_keys
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if wrong or missing or unexpected:
        sizes = [f"{k} {_size(state[k])} instead of {_size(own[k])}" for k in wrong]
        faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", sizes)]
        listed = "; ".join(f"{len(keys)} {what} ({_first(keys)})" for what, keys in faults if keys)
        raise UserError(f"{path} does not fit {name}: keys {listed}; is this a checkpoint of another architecture?")
    return WeightsReport(
        str(path), len(state) - len(replaced), tuple(replaced), file_classes, classes, zeroed, tuple(dropped)
    )


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file, tensors on the CPU."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}; check the path") from None
    try:
        if start[8:] == b"{":
            return safetensors.torch.load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            check_container(path)
        # timm's and DeiT's training scripts save their options, an argparse.Namespace, which holds values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DamagedCheckpointError:
        raise
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path} holds a pickled {refused[1]}, and checkpoints that would run code are not read; "
                "save the state dict alone with torch.save(model.state_dict(), …)"
            ) from None
        raise UserError(f"{path} is not a checkpoint of torch.save or safetensors, or it is damaged") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, not a state dict; save model.state_dict()")
    return content


def _state_dict(content: Mapping[str, Any], path: Path, ema: bool) -> OrderedDict[str, Tensor]:
    candidates = [content.get(key) for key in (_EMA_CONTAINERS if ema else ()) + _CONTAINERS] + [content]
    for found in candidates:
        if isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values()):
            break
    else:
        raise UserError(f"{path} holds no weights, only {_first(list(map(str, content)))}; save model.state_dict()")
    tensors = {str(k).replace("_orig_mod.", ""): value for k, value in found.items() if isinstance(value, Tensor)}
    check_tensors(tensors, path)
    wrapped = all(key.startswith("module.") for key in tensors if key != "n_averaged")
    blurred = {key.removesuffix("blur_filter") for key in tensors if key.endswith(".blur_filter")}

    def rename(key: str) -> str:
        for prefix in blurred:
            key = key.replace(f"{prefix}conv.", prefix) if key.startswith(prefix) else key
        key = _DENSENET_KEY.sub(r"\1\2", key)
        return key.removeprefix("module.") if wrapped else key

    skip = {f"{prefix}blur_filter" for prefix in blurred} | ({"n_averaged"} if wrapped else set())
    state = OrderedDict((rename(key), value) for key, value in tensors.items() if key not in skip)
    metadata = getattr(found, "_metadata", None)  # versions by which modules read what older ones wrote
    if metadata is not None:
        paths = {path: rename(f"{path}.".replace("_orig_mod.", "")).removesuffix(".") for path in metadata}
        state._metadata = {paths[path]: value for path, value in metadata.items()}  # type: ignore[attr-defined]
    return state


def _has_blurpool(content: Mapping[str, Any]) -> bool:
    config = content.get("config")
    if isinstance(config, Mapping) and isinstance(config.get("model"), Mapping):
        return bool(config["model"].get("use_blurpool", False))
    nested = [value for value in content.values() if isinstance(value, Mapping)]
    return any(str(key).endswith(".blur_filter") for mapping in [content, *nested] for key in mapping)


def head_names(model: nn.Module) -> set[str]:
    """The names of the layers that give the logits: what timm says, else the last linear layer or convolution."""
    names = {id(module): name for name, module in model.named_modules()}
    get_classifier: Any = getattr(model, "get_classifier", lambda: None)
    stated = get_classifier()
    heads = [head for head in (stated if isinstance(stated, tuple | list) else [stated]) if head is not None]
    found = {names[id(head)] for head in heads if id(head) in names}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return found or set(layers[-1:])


def _relu_follows(model: nn.Module, head: set[str]) -> bool:
    """Whether a ReLU comes after a layer of the head in its sequence."""
    for name in head:
        parent, _, own = name.rpartition(".")
        siblings = dict(model.get_submodule(parent).named_children())
        later = list(siblings.values())[list(siblings).index(own) + 1 :] if own in siblings else []
        if isinstance(model.get_submodule(parent), nn.Sequential) and any(isinstance(m, nn.ReLU) for m in later):
            return True
    return False


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first(keys: Sequence[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")
