"""What a file of weights holds: read without executing anything of it, and named where it is something else."""

import argparse
import pathlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ffcv_train.models.checkpoint import check_container
from ffcv_train.system.errors import UserError

# Where training programs keep the state dict, and its averaged twin, in what they save; dots lead into nested ones.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "state.model")
_EMA_CONTAINERS = ("ema", "state_dict_ema", "model_ema")
# Wrappers that name themselves inside of keys, at any depth: of torch.compile, FSDP and activation checkpointing.
_INFIXES = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Where training programs note the architecture.
_ARCH_KEYS = ("arch", "model", "model_name", "architecture", "backbone")
_OPTION_KEYS = ("args", "hyper_parameters", "config", "opt")


def _harmless() -> list[Any]:
    """Classes beside torch's own that hold values only, as training programs save them among their options."""
    scalar = np.float64(0).__reduce__()[0]
    reconstruct = np.zeros(1).__reduce__()[0]
    found: list[Any] = [
        argparse.Namespace,
        np.dtype,
        np.ndarray,
        *{type(np.dtype(kind)) for kind in np.typecodes["All"]},
    ]
    for package in ("numpy.core", "numpy._core"):
        found += [(scalar, f"{package}.multiarray.scalar"), (reconstruct, f"{package}.multiarray._reconstruct")]
    for kind in ("Posix", "Windows"):
        pure = getattr(pathlib, f"Pure{kind}Path")  # those of another system cannot be made on this one
        for module in ("pathlib", "pathlib._local"):
            found += [(pure, f"{module}.{kind}Path"), (pure, f"{module}.Pure{kind}Path")]
    return found


def read_weight_file(path: Path) -> Mapping[str, Any]:
    """The content of a file of torch.save or safetensors, tensors on the CPU. Raises `UserError` for anything else."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {_unreadable(path, error)}") from None
    try:
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        zipped = zipfile.is_zipfile(path)
        _refuse_others(path, start, zipped)
        if zipped:
            check_container(path)
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except Exception as error:
        if "torch.distributed" in str(error):
            raise _sharded(path) from None
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


def state_dicts(
    content: Mapping[str, Any], path: str | Path, ema: bool
) -> Iterator[tuple[OrderedDict[str, Tensor], bool]]:
    """Every (state dict, whether it is averaged weights) of `content`, the likeliest first; averaged ones with `ema`.

    Keys lack the names of wrappers. Raises `UserError` where there are no tensors.
    """
    names = (_EMA_CONTAINERS if ema else ()) + _CONTAINERS
    others = [name for name in content if name not in (*_EMA_CONTAINERS, *_CONTAINERS)]
    candidates = [(_at(content, name), name in _EMA_CONTAINERS) for name in names]
    candidates += [(content, False), *((content[name], False) for name in others)]
    found = False
    for candidate, averaged in candidates:
        if _holds_tensors(candidate):
            found = True
            yield _unwrapped(candidate, path), averaged
    if not found:
        listed = ", ".join(list(map(str, content))[:3]) + (", …" if len(content) > 3 else "")
        raise UserError(f"{path} holds no weights, only {listed}; save model.state_dict()")


def has_averaged(content: Mapping[str, Any]) -> bool:
    """Whether a file holds averaged weights under a name that says so."""
    return any(_holds_tensors(_at(content, name)) for name in _EMA_CONTAINERS)


def stated_arch(content: Mapping[str, Any]) -> str:
    """The architecture as the file of a training program names it, else ""."""
    options = [content.get(key) for key in _OPTION_KEYS]
    places = [vars(place) if isinstance(place, argparse.Namespace) else place for place in options]
    for place in (content, *places):
        for key in _ARCH_KEYS:
            value = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(value, str) and value:
                return value
    return ""


def _holds_tensors(candidate: Any) -> bool:
    return isinstance(candidate, Mapping) and any(isinstance(value, Tensor) for value in candidate.values())


def _at(content: Mapping[str, Any], name: str) -> Any:
    found: Any = content
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def renamed(state: Mapping[Any, Tensor], rename: Callable[[str], str | None]) -> OrderedDict[str, Tensor]:
    """`state` under the keys that `rename` gives, None leaves out, with the versions that modules noted beside it."""
    found = OrderedDict((new, value) for key, value in state.items() if (new := rename(str(key))) is not None)
    metadata = getattr(state, "_metadata", None)  # by which modules read what older versions of them wrote
    if metadata is not None:
        paths = ((rename(f"{path}."), value) for path, value in metadata.items())
        found._metadata = {path.removesuffix("."): value for path, value in paths if path is not None}  # type: ignore[attr-defined]
    return found


def _unwrapped(found: Mapping[Any, Any], path: str | Path) -> OrderedDict[str, Tensor]:
    """The tensors of a state dict, without the names of wrappers in their keys."""
    tensors = {str(key) for key, value in found.items() if isinstance(value, Tensor)}
    state = renamed(found, lambda key: _INFIXES.sub("", key) if key in tensors or key.endswith(".") else None)
    if any(hasattr(value, "full_tensor") for value in state.values()):
        raise _sharded(path)
    flat = next((key for key in state if key.endswith("flat_param")), None)
    if flat is not None:
        raise UserError(
            f"{path} holds FSDP's flattened parameters ({flat}); save under FSDP.state_dict_type(model, "
            "StateDictType.FULL_STATE_DICT), or with torch.distributed.checkpoint.state_dict"
        )
    return state


def _unreadable(path: Path, error: OSError) -> str:
    """Why a file cannot be opened, and what to do; folders are named as what they are."""
    if not path.is_dir():
        return f"{error.strerror}; check the path"
    names = {entry.name for entry in path.iterdir()}
    whole = [name for name in ("final.pt", "model.safetensors", "pytorch_model.bin") if name in names]
    if whole:
        return f"it is a folder; give {path / whole[0]}"
    if ".metadata" in names:
        return (
            "it is a folder of torch.distributed.checkpoint; make one file of it with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
        )
    if "zero_to_fp32.py" in names:
        return (
            f"it is a folder of DeepSpeed; make one file of it with python {path / 'zero_to_fp32.py'} {path} weights.pt"
        )
    if "saved_model.pb" in names:
        return "it is a SavedModel of TensorFlow, which PyTorch does not read; give weights for PyTorch"
    return "it is a directory; give a file in it"


def _refuse_others(path: Path, start: bytes, zipped: bool) -> None:
    """Raise `UserError` where the file shows that it is of another kind."""
    kind = _kind_of_archive(path) if zipped else _kind_of_bytes(path, start)
    if kind is not None:
        raise UserError(f"{path} {kind}")


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None  # said with what is damaged
    if any("/code/" in name for name in names):
        return (
            "is a TorchScript program, not weights alone; save them with "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')"
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return (
            "is a program of torch.export, not weights alone; save them with "
            f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pt')"
        )
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays, as JAX's programs write; convert it to a state dict of PyTorch first"
    if any(name.endswith(".h5") for name in names):
        return "is a model of Keras, which is not read; give weights for PyTorch"
    return None


def _kind_of_bytes(path: Path, start: bytes) -> str | None:
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is the pointer that Git LFS leaves in place of a file; get the file with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file behind it; download it again, from the address of the file itself"
    if start.startswith(b"\x89HDF"):
        return "is HDF5, as Keras writes, which is not read; give weights for PyTorch"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed with gzip; unpack it first"
    if path.name.endswith(".index.json"):
        return "is the index of weights in several files; join them into one with safetensors or torch first"
    if path.suffix == ".onnx":
        return "is an ONNX program, not weights; give the checkpoint that it was exported from"
    return None


def _sharded(path: str | Path) -> UserError:
    return UserError(
        f"{path} holds one process's share of each tensor (DTensor, of FSDP2 or tensor parallelism); gather them with "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
        "full_state_dict=True)) and save that"
    )
