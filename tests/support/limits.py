"""A bound for what must not wait for ever."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def no_hang(seconds: int = 240) -> Iterator[None]:
    """Fail what is still at work after `seconds`, which are many times what it takes. In the main thread alone."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still waiting after {seconds} s")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
