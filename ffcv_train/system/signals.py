"""Signals that end a conversion, which must leave nothing behind; processes that end with the one that started them."""

import contextlib
import ctypes
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ffcv_train.system.errors import UserError


class StopSignals:
    """A context in which SIGTERM and SIGHUP interrupt as Ctrl-C does, so that they too leave nothing behind.

    Only the first signal does; what follows would cut the cleaning short.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, target: Path) -> None:
        self._target = target
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        # Python handles signals in the main thread only; elsewhere they are not ours to take.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in self._SIGNALS}
            for number, handler in self._previous.items():
                if handler is not signal.SIG_IGN:  # nohup
                    signal.signal(number, self._interrupt)
        return self

    def ignore(self) -> None:
        """From here on no signal interrupts."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._received not in (None, signal.SIGINT) and isinstance(error, KeyboardInterrupt):
            raise UserError(f"stopped by {self._received.name}; {self._target} is as it was before") from None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self.ignore()
        raise KeyboardInterrupt


_IMPATIENCE_SECONDS = 1.0


class StopRequest:
    """A context in which the first SIGTERM, SIGINT or SIGHUP sets `signal`.

    Later ones change nothing, because schedulers and launchers send the same wish several times, but for a SIGINT that
    comes a second or more after the first signal: it acts as usual.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def age(self) -> float:
        """Seconds since the signal came, 0 without one."""
        return time.monotonic() - self._since if self.signal is not None else 0.0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _IMPATIENCE_SECONDS:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, of SIGKILL too."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
