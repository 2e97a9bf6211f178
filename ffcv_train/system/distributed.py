"""The process group that torchrun describes: set-up, who we are, exact sums."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ffcv_train.system.errors import UserError
from ffcv_train.system.launcher import ends_with_launcher
from ffcv_train.system.rendezvous import absent_ranks_are_said, meet
from ffcv_train.system.watch import at, others_that_ended, watched

T = TypeVar("T")
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed out", re.IGNORECASE)


@dataclass(frozen=True)
class Process:
    """One process of a run; `local_*` count the processes of this machine only."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


def this_process(device_name: str) -> Process:
    """This process as torchrun's environment variables describe it, or alone; the group is not joined.

    `device_name` is "auto", "cpu" or "cuda". Raises `UserError` when a GPU is asked for and none is there.
    """
    environment = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    launched = _launched()
    try:
        rank, world_size = (int(environment["RANK"] or 0), int(environment["WORLD_SIZE"] or 1)) if launched else (0, 1)
        local_rank = int(environment["LOCAL_RANK"] or 0) if launched else 0
        local_world_size = int(environment["LOCAL_WORLD_SIZE"] or world_size) if launched else 1
    except ValueError:
        raise UserError(
            f"torchrun's variables are no numbers ({environment}); start with torchrun or unset them"
        ) from None
    return Process(rank, world_size, local_rank, local_world_size, _device(device_name, local_rank))


def _launched() -> bool:
    return os.environ.get("RANK") is not None and os.environ.get("WORLD_SIZE") is not None


@contextmanager
def process_group(device_name: str) -> Iterator[Process]:
    """Join the process group that torchrun's environment variables describe, if any, and leave it at the end.

    `device_name` is "auto", "cpu" or "cuda". Raises `UserError` when a GPU is asked for and none is there, or the
    group cannot be formed.
    """
    process = this_process(device_name)
    device = process.device
    if not _launched():
        yield process
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        with absent_ranks_are_said():
            store, rank, world_size = meet()
            bound = device if device.type == "cuda" else None
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, device_id=bound)
    except (RuntimeError, ValueError) as error:
        if "Duplicate GPU" in str(error):
            raise UserError(
                "several processes have the same GPU; start as many as there are GPUs, or give each one of its own"
            ) from None
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes could not meet at {address} ({reason}); free the port or choose another with "
            f"torchrun --master_port"
        ) from None
    try:
        with ends_with_launcher(), watched(store, rank, world_size), _lost_ranks_are_said(rank):
            yield process
    except Exception:
        # The other ranks may never come to the orderly end, for which NCCL would wait. Stopping is agreed by all.
        if device.type == "cuda":
            dist.group.WORLD.abort()  # type: ignore[union-attr]
        else:
            dist.destroy_process_group()
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def need_one_process(process: Process, what: str) -> None:
    """Raise `UserError` where `what`, which runs in one process, was started in several."""
    if process.world_size > 1:
        raise UserError(f"{what} runs in one process; start it without torchrun")


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, in place and returned; exact for integers. Without a group, `tensor`."""
    if dist.is_initialized():
        with _meeting():
            dist.all_reduce(tensor)
    return tensor


def from_rank_0(value: T) -> T:
    """What rank 0 passed, on every rank; a text, a path or None."""
    if not dist.is_initialized():
        return value
    values = [value]
    with _meeting():
        dist.broadcast_object_list(values)
    return values[0]


def from_all_ranks(process: Process, value: T) -> list[T]:
    """What each rank passed, in the order of ranks, on every rank; plain values that JSON can say."""
    if process.world_size == 1 or not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * process.world_size
    with _meeting():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        with _meeting():
            dist.barrier()


@contextmanager
def _meeting() -> Iterator[None]:
    at(meets=True, waits=True)
    yield
    at()


@contextmanager
def _lost_ranks_are_said(rank: int) -> Iterator[None]:
    """Turn what Gloo and NCCL raise where another rank has ended into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        reason = str(error).splitlines()[0][:200].rstrip(". ")
        raise UserError(
            f"rank {rank} has lost {others_that_ended() or 'another rank'} ({reason}); what that one printed says why, "
            "and --training.resume=auto continues from the last checkpoint"
        ) from None


def local_process(device: torch.device, rank: int | None = None, world_size: int | None = None) -> Process:
    """This process within the group that the caller has set up, if any; `rank` and `world_size` replace the group's.

    Raises `ValueError` where one of them is given alone, or they do not fit.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size belong together, not {rank=}, {world_size=}")
    if rank is None or world_size is None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 … world_size − 1, not {rank} of {world_size}")
    # The launcher knows how many of them this machine has.
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size) if world_size > 1 else 1
    return Process(rank, world_size, int(os.environ.get("LOCAL_RANK") or rank) if local > 1 else 0, local, device)


def choose_device(device: torch.device | str | None) -> torch.device:
    """`device` with its index; None: the current GPU, or the CPU where there is none. Raises `ValueError`."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {str(device)!r}")
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        index = chosen.index if chosen.index is not None or not count else torch.cuda.current_device()
        if index is None or index >= count:
            raise ValueError(f"device={str(device)!r}, but PyTorch sees {count} GPUs; check nvidia-smi")
        chosen = torch.device("cuda", index)
    return chosen


def share_of_cores(process: Process) -> int:
    """The cores this process may use, when the machine's are shared evenly among its local ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // process.local_world_size)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "training.device is cuda, but PyTorch sees no GPU; check nvidia-smi, or use --training.device=cpu"
        )
    count = torch.cuda.device_count()
    if count == 1 and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        # A launcher such as SLURM's gave each of its tasks one GPU, which is the first that this one sees.
        local_rank = 0
    if local_rank >= count:
        raise UserError(
            f"this machine has {count} GPUs, but torchrun started local rank {local_rank}; lower --nproc_per_node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
