"""Checkpoints as the trainer writes them, of networks that nobody trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.models.checkpoint import save_checkpoint
from ffcv_train.models.factory import create_model

SMALL_EVALUATION = [
    "--validation.resolution=32",
    "--validation.crop_ratio=1",
    "--validation.batch_size=16",
    "--training.amp=off",
    "--training.device=cpu",
    "--data.num_workers=1",
]
"""Options of an evaluation on images of 32 pixels"""


def varied_network(outputs: int, seed: int) -> nn.Module:
    """A network whose logits differ from image to image: its batch norms have seen data."""
    torch.manual_seed(seed)
    model = create_model(ModelConfig(arch="cifar_resnet20"), outputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 1, 1) + 0.5 * torch.randn(64, 3, 32, 32))
    return model.eval()


def write_checkpoint(
    path: Path,
    config: RunConfig,
    model: nn.Module,
    class_names: Sequence[str] | None,
    num_classes: int,
    normalisation: tuple[Sequence[float], Sequence[float]],
    /,
    **entries: Any,
) -> Path:
    """Write what `config` and the others say; `entries` replace what a checkpoint holds. Returns `path`."""
    mean, std = normalisation
    state = {
        "model": model.state_dict(),
        "ema": None,
        "config": to_dict(config),
        "arch": config.model.arch,
        "num_classes": num_classes,
        "class_names": None if class_names is None else list(class_names),
        "normalisation": {"mean": list(mean), "std": list(std)},
        "epoch": 3,
        "step": 0,
    }
    save_checkpoint({**state, **entries}, path)
    return path
