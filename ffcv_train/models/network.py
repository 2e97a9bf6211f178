"""A network on its device, with its normalisation, precision and memory format."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.models.factory import check_resolution, create_model
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.models.opening import Checkpoint, open_checkpoint
from ffcv_train.models.preset import preset_of
from ffcv_train.models.weights import load_weights
from ffcv_train.system.class_names import difference
from ffcv_train.system.errors import UserError

AMP_DTYPES: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


@dataclass(frozen=True)
class Network:
    """A model on its device, with its normalisation, precision and memory format."""

    model: nn.Module
    num_classes: int
    normalise: Normaliser
    amp_dtype: torch.dtype | None
    """The type of autocast's low-precision operations, None for none"""

    @classmethod
    def on(
        cls,
        device: torch.device,
        model: nn.Module,
        num_classes: int,
        config: RunConfig,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> "Network":
        """Move `model` to `device`, in the precision and memory format of `config`; `normalisation`: (mean, std)."""
        amp_dtype, channels_last = AMP_DTYPES[config.training.amp], config.model.channels_last
        model = place(model, device, channels_last=channels_last)
        normalise = Normaliser(*normalisation, device, amp_dtype or torch.float32, _memory_format(channels_last))
        return cls(model, num_classes, normalise, amp_dtype)

    @property
    def device(self) -> torch.device:
        return self.normalise.device

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def logits(self, images: Tensor) -> Tensor:
        """float32 [B, K] of images [B, 3, H, W] that `normalise` gave."""
        with self.autocast():
            return self.model(images).float()


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """`model`, moved to `device` in its memory format."""
    return model.to(device, memory_format=_memory_format(channels_last))  # type: ignore[call-overload]


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def normalisation(config: RunConfig, weights: Checkpoint | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of pixels in [0, 1]: the options', else the weights' own, else ImageNet's."""
    if config.data.mean:
        return config.data.mean, config.data.std
    preset = preset_of(weights, config.model.arch) if weights is not None else None
    return (preset.normalisation if preset is not None else None) or (IMAGENET_MEAN, IMAGENET_STD)


def build_network(
    config: RunConfig,
    num_classes: int,
    device: torch.device,
    sides: Set[int],
    model: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
    weights: Checkpoint | None = None,
) -> tuple[Network, str]:
    """The network to train on `device`, initialised from the seed or model.weights, and what was loaded, in words.

    `model` stands in place of the one that `config` describes; `class_names`, in label order, are those of the data,
    which a head from the file may have in another order; `weights` is what model.weights names, where it is open
    already. Raises `UserError` where it cannot take images of the
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
        weights = weights or open_checkpoint(config.model.weights, config.model.arch)
        report = load_weights(model, weights, config.model.arch)
        loaded = str(report)
        if class_names and report.class_names:
            apart = difference("the file", report.class_names, "the data", class_names)
            loaded += f"; {apart}, so its head begins with other classes' rows" if apart else ""
    return Network.on(device, model, num_classes, config, normalisation(config, weights)), loaded
