"""The formats of an exported network: how each is written, and how its own library reads it back.

A writer takes the network, on the CPU in float32 and evaluation mode, and writes to a path that does not exist. A
reader, which imports nothing of ours, returns what turns normalised images, float32 [B, 3, R, R], into logits [B, K].
Both raise `UserError` where the format cannot hold the network, or a library is missing.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ffcv_train.models.factory import find_arch
from ffcv_train.publish.description import Description
from ffcv_train.system.errors import UserError

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A way to write a network."""

    write: Callable[[nn.Module, Description, Path], None]
    read: Callable[[Path, Description, nn.Module], Forward]
    """The last argument is ours, for formats that hold tensors and no network"""
    suffixes: tuple[str, ...]
    """Of the file; none for a folder"""


def write_onnx(model: nn.Module, description: Description, path: Path) -> None:
    """ONNX: `images` [batch, 3, R, R] to `logits` [batch, K], any batch; the description as metadata."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format=onnx needs {', '.join(missing)}; pip install {' '.join(missing)}")
    with _quiet(), _refusing("ONNX"):
        program = torch.onnx.export(
            model,
            (_example(description),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(description.texts())
        program.save(path, external_data=False)


def read_onnx(path: Path, description: Description, ours: nn.Module) -> Forward:
    """By ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_torch(model: nn.Module, description: Description, path: Path) -> None:
    """`torch.export`'s program, which needs no code of ours; the description as the extra file `metadata.json`."""
    with _quiet(), _refusing("torch.export"):
        program = torch.export.export(model, (_example(description),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(asdict(description))})


def read_torch(path: Path, description: Description, ours: nn.Module) -> Forward:
    """By `torch.export.load`."""
    return torch.export.load(path).module()


def write_safetensors(model: nn.Module, description: Description, path: Path) -> None:
    """The state dict, under our names, which are those of the architecture's library; the description as metadata."""
    safetensors.torch.save_file(_tensors(model), path, description.texts())


def read_safetensors(path: Path, description: Description, ours: nn.Module) -> Forward:
    """Into a network like ours."""
    ours.load_state_dict(safetensors.torch.load_file(path))
    return ours


def write_torchvision(model: nn.Module, description: Description, path: Path) -> None:
    """A state dict of torchvision's network; the description lies beside it as `<file>.json`."""
    other = _of_library("torchvision", description)
    _load_into(other, model, "torchvision", description)
    torch.save(dict(_tensors(other)), path)
    path.with_name(f"{path.name}.json").write_text(json.dumps(asdict(description), indent=2), encoding="utf-8")


def read_torchvision(path: Path, description: Description, ours: nn.Module) -> Forward:
    """Into torchvision's network."""
    model = _of_library("torchvision", description)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def write_timm(model: nn.Module, description: Description, path: Path) -> None:
    """A folder as timm publishes its models: `timm.create_model("local-dir:…", pretrained=True)` opens it."""
    from timm.models import save_for_hf

    other = _of_library("timm", description)
    _load_into(other, model, "timm", description)
    images = {
        "input_size": (3, description.side, description.side),
        "mean": description.mean,
        "std": description.std,
        "crop_pct": description.crop_ratio,
        "crop_mode": "center",
        "interpolation": description.interpolation,
    }
    about = {"ffcv_train": {key: value for key, value in asdict(description).items() if key != "class_names"}}
    names = {"label_names": list(description.class_names)} if description.class_names else {}
    save_for_hf(other, str(path), model_config={**names, **about}, safe_serialization=True, data_config=images)


def read_timm(path: Path, description: Description, ours: nn.Module) -> Forward:
    """By timm, from the folder."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(f"local-dir:{path.absolute()}", pretrained=True).eval()


FORMATS: Mapping[str, Format] = {
    "onnx": Format(write_onnx, read_onnx, (".onnx",)),
    "torch": Format(write_torch, read_torch, (".pt2",)),
    "timm": Format(write_timm, read_timm, ()),
    "torchvision": Format(write_torchvision, read_torchvision, (".pth", ".pt")),
    "safetensors": Format(write_safetensors, read_safetensors, (".safetensors",)),
}


def _example(description: Description) -> Tensor:
    # Two: a batch of one would be taken for the only one.
    return torch.zeros(2, 3, description.side, description.side)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _of_library(library: str, description: Description) -> nn.Module:
    """A library's network of the architecture, random. Raises `UserError` where it has none."""
    from ffcv_train.config.schema import ModelConfig
    from ffcv_train.models.factory import create_model

    own, name = find_arch(description.arch)
    if description.use_blurpool:
        raise UserError(f"{library} has no BlurPool, with which this network was trained; export it as onnx or torch")
    try:
        return create_model(ModelConfig(arch=f"{library}/{name}"), description.num_classes)
    except UserError:
        raise UserError(
            f"{library} has no network {name}, which is {own}'s; export it as onnx, torch or safetensors"
        ) from None


def _load_into(other: nn.Module, model: nn.Module, library: str, description: Description) -> None:
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError:
        raise UserError(
            f"{library}'s network of the name of {description.arch} has other tensors; export it as onnx, torch or "
            "safetensors"
        ) from None


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises of a network into a `UserError`."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = _reason(error)
        raise UserError(f"the network cannot be written as {what}: {reason}; choose another --format") from None


def _reason(error: BaseException) -> str:
    """The first line of the cause, which exporters wrap in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(lines[0])[:300].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters warn and log of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
