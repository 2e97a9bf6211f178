"""Waiting for data that may never come: said after a minute, given up where that is asked for."""

import time
import warnings
from collections.abc import Callable

from ffcv_train.system.errors import UserError

POLL_SECONDS = 1.0
"""At the longest: how soon a wait notices that it is to be given up"""
_STALL_SECONDS = 60.0


class NoBatchError(UserError):
    """A wait for a batch was given up."""


def never() -> bool:
    """Whether to give up: no."""
    return False


class Wait:
    """One wait for a batch; whoever waits calls `check` at least every `POLL_SECONDS`.

    `source` is what the batch comes from, `give_up` says whether the wait shall end without it.
    """

    def __init__(self, source: object, give_up: Callable[[], bool] = never) -> None:
        self._source, self._give_up = source, give_up
        self._start = time.perf_counter()
        self._since = time.strftime("%H:%M:%S")
        self._said_next = _STALL_SECONDS

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.perf_counter() - self._start

    def check(self) -> None:
        """Warn after a minute, then at twice that time and so on. Raises `NoBatchError` where it is to be given up."""
        waited = self.seconds
        if self._give_up():
            raise NoBatchError(f"no batch from {self._source} for {waited:.0f} s; see whether its storage answers")
        if waited >= self._said_next:
            self._said_next = 2 * waited
            message = f"no batch from {self._source} for {waited:.0f} s, since {self._since}; is its storage answering?"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
