"""A network on its device, with its normalisation, precision and memory format."""

from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.models.factory import check_resolution, create_model, pretrained_normalisation
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.models.weights import load_weights
from ffcv_train.system.errors import UserError


def normalisation(config: RunConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of pixels in [0, 1]: the options', else the weights' own, else ImageNet's."""
    if config.data.mean:
        return config.data.mean, config.data.std
    return pretrained_normalisation(config.model) or (IMAGENET_MEAN, IMAGENET_STD)


def build_model(
    config: RunConfig, num_classes: int, device: torch.device, sides: Set[int], model: nn.Module | None = None
) -> tuple[nn.Module, str]:
    """The network on `device`, initialised from the seed or model.weights, and what was loaded, in words.

    `model` stands in place of the one that `config` describes. Raises `UserError` where it cannot take images of the
    training `sides` or of validation's, or has not `num_classes` outputs.
    """
    torch.manual_seed(config.training.seed)
    if model is None:
        model = create_model(config.model, num_classes)
    for side in sorted(sides | set(config.validation.resolution)):
        outputs = check_resolution(model, side, config.model.arch)
        if outputs != num_classes:
            raise UserError(
                f"{config.model.arch} has {outputs} outputs, but there are {num_classes} classes; give it as many, or "
                f"set --model.num_classes={outputs}"
            )
    loaded = ""
    if config.model.weights:
        report = load_weights(model, config.model.weights, config.model.arch, blurred=config.model.use_blurpool)
        loaded = str(report)
    memory_format = torch.channels_last if config.model.channels_last else torch.contiguous_format
    return model.to(device, memory_format=memory_format), loaded  # type: ignore[call-overload]


@dataclass(frozen=True)
class Network:
    """A checkpoint's network on its device, ready to be evaluated."""

    model: nn.Module
    num_classes: int
    normalise: Normaliser
    amp_dtype: torch.dtype | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


AMP_DTYPES: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
