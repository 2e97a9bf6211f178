"""Training as a function: of a configuration, and of a network and a criterion that need not be ours."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn

from ffcv_train.config.read import from_dict, to_dict
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.losses.adapted import Adapted
from ffcv_train.losses.base import Criterion
from ffcv_train.system.distributed import Process, choose_device, local_process, process_group
from ffcv_train.system.errors import UserError, speaking_of_arguments
from ffcv_train.training.trainer import Trainer


def train(
    config: RunConfig,
    model: nn.Module | None = None,
    criterion: Criterion | Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Path:
    """Train as `config` says and return the path of the final checkpoint.

    `model`, a network that turns float [B, 3, H, W] into logits [B, K], is trained in place of the one that
    `config.model.arch` names, from the weights that it has; `load_network(path, model=…)` opens its checkpoints.
    `criterion` stands in place of the one that `config.loss` describes: a `Criterion`, or any
    `loss(logits, targets)`, see `Adapted`. Under torchrun every process calls this.

    Raises `UserError` for what does not fit together, before the first step, and for a loss that is not finite;
    `Stopped`, after a complete step and with a checkpoint, on SIGTERM and Ctrl-C.

    >>> options = ["--data.train_dataset=train.beton", "--data.val_dataset=val.beton", "--logging.folder=runs"]
    >>> config = load_config(RunConfig, [*options, "--model.arch=cifar_resnet20", "--training.epochs=90"])
    >>> final = train(config)  # doctest: +SKIP
    """
    if not isinstance(config, RunConfig):
        raise TypeError(f"config must be a RunConfig, such as load_config returns, not {type(config).__name__}")
    if model is not None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        config = _of_another_network(config, model)
    if criterion is not None:
        if not callable(criterion):
            raise TypeError(f"criterion must be a Criterion or a function of (logits, targets), not {criterion!r}")
        name = getattr(criterion, "__name__", type(criterion).__name__)
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name=name))
        criterion = criterion if isinstance(criterion, Criterion) else Adapted(criterion)
    with speaking_of_arguments(sections=True):
        from_dict(RunConfig, to_dict(config), "config")  # what was not read from a file or a command line is checked
        with _process(config.training.device) as process:
            return Trainer(config, process, model, criterion).fit() / "final.pt"


def _of_another_network(config: RunConfig, model: nn.Module) -> RunConfig:
    for name in ("weights", "use_blurpool", "drop_path"):
        if getattr(config.model, name) != getattr(ModelConfig(), name):
            raise UserError(
                f"model.{name} is for networks that are made by name, and train was given a model; leave it at its "
                "default, and make the model so"
            )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, arch=type(model).__name__))


@contextlib.contextmanager
def _process(device: str) -> Iterator[Process]:
    """The process within the group that the caller has set up, or else the one that torchrun describes."""
    if dist.is_initialized():
        yield local_process(choose_device(None if device == "auto" else device))
        return
    with process_group(device) as process:
        yield process
