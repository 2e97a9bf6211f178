"""Ranks as threads of one process, for what meets nowhere but in a sum of tensors."""

import threading
from collections.abc import Callable

from torch import Tensor


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
