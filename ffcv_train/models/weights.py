"""Weights from a file: our checkpoints, torchvision's, timm's, plain state dicts, safetensors."""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ffcv_train.models.blurpool import blurred_layers, with_filters
from ffcv_train.models.checkpoint import check_tensors
from ffcv_train.models.opening import Checkpoint, opened
from ffcv_train.models.weight_file import renamed, state_dicts, stated_arch
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError

# torchvision's published DenseNets say norm.1 where its code says norm1.
_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did."""

    path: str
    loaded: int  # tensors taken
    averaged: bool = False  # whether they are averaged weights
    prefix: str = ""  # under which the network's keys stand in the file
    outside: tuple[str, ...] = field(default=())  # keys beside them, left out
    replaced: tuple[str, ...] = field(default=())  # head's keys, of another class count: at zero now
    file_classes: int = 0  # the file's class count where the head was replaced
    classes: int = 0  # the model's class count where the head was replaced
    zeroed: bool = True  # a replaced head starts at zero
    class_names: tuple[str, ...] = ()  # of a head that was taken, where the file names them
    dropped: tuple[str, ...] = field(default=())  # keys of auxiliary heads that this model is built without

    def __str__(self) -> str:
        text = f"{self.loaded} tensors from {self.path}"
        text += ", averaged weights" if self.averaged else ""
        text += f", under {self.prefix}" if self.prefix else ""
        if self.outside:
            count = f"{len(self.outside)} key{'s' if len(self.outside) > 1 else ''}"
            text += f", without {count} beside it ({_first(self.outside)})"
        if self.replaced:
            start = "at zero" if self.zeroed else "at random, for zeros before its ReLU would not learn"
            text += f"; new head {start}, as the file's has {self.file_classes} classes: {', '.join(self.replaced)}"
            if self.zeroed:
                text += f"; cross-entropy starts at ln {self.classes} = {math.log(self.classes):.3f}"
        return text


def read_state_dict(checkpoint: Checkpoint | str | Path, ema: bool = False) -> OrderedDict[str, Tensor]:
    """The tensors of a checkpoint on the CPU, by name, without the names of wrappers such as torch.compile's.

    Takes files of torch.save (a state dict, or one in "model", "state_dict" and the like) and safetensors; executes
    nothing from the file. With `ema` the averaged weights, where the file has them. Raises `UserError` for what is
    not a checkpoint.
    """
    checkpoint = opened(checkpoint)
    state, _ = next(state_dicts(checkpoint.content, checkpoint.source, ema))
    check_tensors(state, checkpoint.source)
    return state


def load_weights(
    model: nn.Module, checkpoint: Checkpoint | str | Path, arch: str = "", *, ema: bool = True
) -> WeightsReport:
    """Load a checkpoint (see `read_state_dict`) into `model`; every key and shape must fit, except in the head.

    The network's keys may stand under any prefix: DDP's `module.`, Lightning's `model.`, both, another's; what stands
    beside it is left out, and said. A classifier head whose class count differs from the file's starts at zero (as
    BiT's, arXiv:1912.11370), which the report says; one that a ReLU follows, SqueezeNet's, keeps its initialisation,
    for at zero it would have no gradient. `ema` takes averaged weights where the file has them, as timm does. `arch`
    is the model's name in errors. Raises `UserError` where the file does not fit, or only one of its network and
    `model` has BlurPool.
    """
    checkpoint = opened(checkpoint, arch)
    path, content = checkpoint.source, checkpoint.content
    name = arch or type(model).__name__
    own = model.state_dict()
    state, prefix, outside, averaged = _of_the_network(content, path, own, ema)
    state = _of_the_same_filters(state, content, path, name, model)
    check_tensors(state, path)
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
        stated = stated_arch(content)
        hint = f"the file says that it is of {stated}" if stated else "is this a checkpoint of another architecture?"
        raise UserError(f"{path} does not fit {name}: keys {listed}; {hint}")
    return WeightsReport(
        path,
        len(state) - len(replaced),
        averaged=averaged,
        prefix=prefix,
        outside=tuple(outside),
        replaced=tuple(replaced),
        file_classes=file_classes,
        classes=classes,
        zeroed=zeroed,
        class_names=() if replaced else _class_names(content),
        dropped=tuple(dropped),
    )


def _class_names(content: Any) -> tuple[str, ...]:
    names = content.get("class_names") if isinstance(content, Mapping) else None
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(map(tidy, names)) if named and names is not None else ()


def find_prefix(keys: Iterable[str], own: Collection[str]) -> str:
    """The prefix of `keys` under which more than half of a network's `own` keys lie; "" where there is none.

    Of several under which equally many lie, MoCo's `module.encoder_q.` and `module.encoder_k.`, the first.
    """
    counts: Counter[str] = Counter()
    for key in keys:
        starts = [0, *(place.end() for place in re.finditer(r"\.", key))]
        counts.update(key[:start] for start in starts if key[start:] in own)
    prefix, count = counts.most_common(1)[0] if counts else ("", 0)
    return prefix if 2 * count > len(own) else ""


def _of_the_network(
    content: Mapping[str, Any], path: str, own: Mapping[str, Tensor], ema: bool
) -> tuple[OrderedDict[str, Tensor], str, list[str], bool]:
    """(state dict, the prefix it stood under, keys beside that, whether averaged) where the keys are a network's `own`.

    Where no state dict of the file has them, the likeliest one as it is.
    """
    first = None
    for tensors, averaged in state_dicts(content, path, ema):
        state = renamed(tensors, lambda key: _DENSENET_KEY.sub(r"\1\2", key))
        prefix = find_prefix(state, own)
        outside = [key for key in state if not key.startswith(prefix)]
        found = _below(prefix, state)
        # AveragedModel counts beside its network.
        result = found, prefix, [key for key in outside if key != "n_averaged"], averaged
        if 2 * len(own.keys() & found.keys()) > len(own):
            return result
        first = first or result
    assert first is not None
    return first


def _below(prefix: str, state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    return renamed(state, lambda key: key[len(prefix) :] if key.startswith(prefix) else None)


def _of_the_same_filters(
    state: OrderedDict[str, Tensor], content: Mapping[str, Any], path: str, name: str, model: nn.Module
) -> OrderedDict[str, Tensor]:
    """`state` in the keys of `model`, where both have BlurPool or neither has. Raises `UserError` elsewhere."""
    config = content.get("config")
    section = config.get("model") if isinstance(config, Mapping) else None
    stated = bool(section.get("use_blurpool", False)) if isinstance(section, Mapping) else False
    there, here = any(key.endswith(".blur_filter") for key in state), blurred_layers(model)
    if (there or stated) and not any(key.endswith(".blur_filter") for key in model.state_dict()):
        raise UserError(f"{path} was trained with BlurPool, which {name} lacks here; set model.use_blurpool=1")
    if here and not there and not stated and all(f"{layer}.weight" in state for layer in here):
        raise UserError(f"{path} was trained without BlurPool, which {name} has here; set model.use_blurpool=0")
    return with_filters(state, model) if stated else state


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
