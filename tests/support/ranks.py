"""Ranks as threads of one process, for what meets nowhere but in a sum of tensors and in what rank 0 says."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def sum_over_threads(count: int) -> Callable[[Tensor], Tensor]:
    """In place of `all_reduce_sum`: sums a tensor over `count` threads in place, and returns it.

    Threads that wait for one that has ended raise `BrokenBarrierError` after a minute.
    """
    meeting = threading.Barrier(count)
    posted: dict[int, Tensor] = {}

    def all_reduce(tensor: Tensor) -> Tensor:
        posted[threading.get_ident()] = tensor.clone()
        meeting.wait(timeout=60)
        total = sum(posted.values())
        meeting.wait(timeout=60)
        return tensor.copy_(total)

    return all_reduce


def from_thread_0(count: int, rank: Callable[[], int]) -> Callable[[T], T]:
    """In place of `from_rank_0`: what the thread for which `rank()` is 0 passed, in all `count` threads."""
    meeting = threading.Barrier(count)
    posted: dict[int, Any] = {}

    def broadcast(value: T) -> T:
        posted[rank()] = value
        meeting.wait(timeout=60)
        found = posted[0]
        meeting.wait(timeout=60)
        return found

    return broadcast
