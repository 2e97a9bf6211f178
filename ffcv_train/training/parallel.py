"""The network on its device: how kernels are chosen, compilation, data parallelism."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.system.distributed import Process, all_reduce_sum
from ffcv_train.system.errors import UserError
from ffcv_train.training import schedules


def set_up_device(amp: str, device: torch.device) -> None:
    """Let a GPU choose its fastest kernels. Raises `UserError` where it only emulates the precision `amp`."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    if amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("this GPU only emulates bf16, which is slow; use --training.amp=fp16")


def seed_generators(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and `device` alone.

    Where there are no GPUs that one takes half a millisecond, to keep a stack trace in case there will be.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def wrap(model: nn.Module, config: RunConfig, process: Process) -> nn.Module:
    """The model as the step calls it: compiled and data-parallel where asked for."""
    wrapped = model
    if process.world_size > 1:
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[process.device.index] if process.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Running statistics are averaged once an epoch instead of being sent with every step.
            forward_sync_buffers=False,
        )
    if config.model.compile:
        sides = {schedules.resolution(config.resolution, epoch) for epoch in range(config.training.epochs)}
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(sides))
        mode = None if config.model.compile_mode == "default" else config.model.compile_mode
        wrapped = torch.compile(wrapped, dynamic=False, mode=mode)  # type: ignore[assignment]
    return wrapped


def synchronise_batchnorm(model: nn.Module, process: Process) -> None:
    """Replace every BatchNorm in `model`, timm's with their activations too, by one over the images of all ranks.

    Parameters, buffers and names stay. Alone there is nothing to do. Raises `UserError` without GPUs, whose
    communication PyTorch's SyncBatchNorm needs.
    """
    if process.world_size == 1:
        return
    if process.device.type != "cuda":
        raise UserError("model.sync_batchnorm=1 needs GPUs; set it to 0 on CPUs")
    # Half a second to import: not for the others.
    from timm.layers import convert_sync_batchnorm

    convert_sync_batchnorm(model)


def gradients_stay_local(wrapped: nn.Module, local: bool) -> contextlib.AbstractContextManager[Any]:
    """While the context lasts and `local` is true, ranks do not send each other their gradients."""
    inner = getattr(wrapped, "_orig_mod", wrapped)
    if local and isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.no_sync()
    return contextlib.nullcontext()


def average_buffers(models: Sequence[nn.Module], world_size: int) -> None:
    """Set the floating-point buffers of `models`, running statistics, to their mean over the ranks."""
    if world_size == 1:
        return
    for buffer in (b for model in models for b in model.buffers() if b.is_floating_point()):
        all_reduce_sum(buffer)
        buffer /= world_size
