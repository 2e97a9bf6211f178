"""A run in words and numbers, for its folder and its user."""

from typing import Any

from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSets
from ffcv_train.system.distributed import Process
from ffcv_train.system.environment import describe_environment
from ffcv_train.training.setup import BatchSizes, validation_is_due
from ffcv_train.training.state import TrainState


def params(
    config: RunConfig, process: Process, data: DataSets, sizes: BatchSizes, peak_lr: float, state: TrainState
) -> dict[str, Any]:
    """What params.json holds."""
    return {
        "config": to_dict(config),
        **describe_environment(process.device),
        "world_size": process.world_size,
        "batch_per_device": sizes.per_device,
        "global_batch": sizes.global_batch,
        "steps_per_epoch": state.steps,
        "peak_lr": peak_lr,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "num_classes": data.num_classes,
        "train_samples": data.samples,
        "val_samples": len(data.val),
        "data_digests": dict(state.facts.data),
    }


def lines(
    params: dict[str, Any], config: RunConfig, notes: list[str], resumed: int | None, state: TrainState
) -> list[str]:
    """What the run is, from its `params`, the `notes` on it, and where it goes on; `resumed` is None for a new one."""
    said = [
        f"{config.model.arch}, {params['parameters'] / 1e6:.1f} M parameters, {params['num_classes']} classes, "
        f"{params['train_samples']:,} training and {params['val_samples']:,} validation images",
        f"batch {params['batch_per_device']} per device × {params['world_size']} devices × "
        f"{config.training.accumulate} passes = {params['global_batch']} globally, {params['steps_per_epoch']} steps "
        f"an epoch, peak lr {params['peak_lr']:.4g}, {config.loss.name}, {config.training.amp} on {params['device']}",
    ]
    return said + notes + ([] if resumed is None else [_where(state, config)])


def _where(state: TrainState, config: RunConfig) -> str:
    if state.unfinished and validation_is_due(config, state.unfinished["epoch"]):
        return f"resumed before the validation of epoch {state.epoch}"
    return f"resumed in epoch {state.epoch + 1}, after step {state.step}"
