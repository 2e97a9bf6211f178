"""What the host learns about the steps, without making the device wait for it."""

import time
from dataclasses import dataclass

import torch

from ffcv_train.system.distributed import Process, all_reduce_sum
from ffcv_train.system.errors import UserError
from ffcv_train.system.signals import StopRequest

_POLL_SECONDS = 0.001
_PATIENCE_SECONDS = 10.0
"""At the least; a report may take as long as the steps since the last one"""


@dataclass(frozen=True)
class Status:
    """The state of all ranks at some recent step."""

    loss: float
    """mean loss of this epoch's forward passes so far"""
    finite: bool
    stop: bool


class StatusBoard:
    """Sums of the epoch's losses on the device, and reports of them that arrive a little later.

    `post` starts the copy of the sums to the host; `read` returns the newest report that was posted before, so that on
    a GPU the host reads numbers that have long arrived. A non-finite loss stays visible, for sums keep it.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._sums = torch.zeros(2, dtype=torch.float64, device=process.device)  # losses, forward passes
        pinned = process.device.type == "cuda"
        self._host = torch.zeros(3, dtype=torch.float64, pin_memory=pinned)
        self._arrived: torch.cuda.Event | None = None
        self._posted = False
        self._last_read = time.monotonic()

    def start_epoch(self, loss_sum: float = 0.0, passes: int = 0) -> None:
        """Begin an epoch of which each rank has done `passes` forward passes, with losses of this sum."""
        self._sums.copy_(torch.tensor([loss_sum, float(passes)], dtype=torch.float64))
        self._posted, self._last_read = False, time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """Add the mean loss of a forward pass (0-d, on the device)."""
        self._sums[0] += loss.double()
        self._sums[1] += 1

    def post(self, stop: bool) -> None:
        """Send the sums and this rank's wish to stop to all ranks and to the host."""
        # A fill, not a copy from the host: that one would wait for the device.
        wish = torch.full((1,), float(stop), dtype=torch.float64, device=self._sums.device)
        report = torch.cat([self._sums, wish])
        self._host.copy_(all_reduce_sum(report), non_blocking=True)
        if self._process.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._posted = True

    def read(self, stop: StopRequest) -> Status | None:
        """The report of the last `post` of this epoch, or None where there was none.

        Raises `UserError` where `stop` came and the report does not, because another rank has ended.
        """
        if not self._posted:
            return None
        if self._arrived is not None:
            self._wait_for(self._arrived, stop)
        losses, passes, wishes = self._host.tolist()
        mean = losses / max(passes, 1.0)
        return Status(mean, mean == mean and abs(mean) != float("inf"), wishes > 0)

    def _wait_for(self, arrived: torch.cuda.Event, stop: StopRequest) -> None:
        # Not `synchronize`, during which Python acts on no signal: a rank that waits for one that has ended would wait
        # until its launcher kills it.
        patience = max(_PATIENCE_SECONDS, 2 * (time.monotonic() - self._last_read))
        while not arrived.query():
            if self._process.world_size > 1 and stop.age > patience:
                name = stop.signal.name if stop.signal is not None else ""
                raise UserError(
                    f"rank {self._process.rank} got {name} and has heard of no other rank for {stop.age:.0f} s; one of "
                    "them has ended, and what it printed says why"
                )
            time.sleep(_POLL_SECONDS)
        self._last_read = time.monotonic()

    def loss_sum(self) -> float:
        """The sum of this epoch's losses so far, averaged over the ranks; waits for the device."""
        return float(all_reduce_sum(self._sums.clone())[0]) / self._process.world_size
