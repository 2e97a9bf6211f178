"""SIGTERM, SIGINT and SIGHUP as a wish to stop after the current step."""

import signal
import time
from types import FrameType, TracebackType

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
