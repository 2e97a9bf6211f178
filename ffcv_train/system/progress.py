"""A progress line: redrawn in place on a terminal, printed now and then elsewhere."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ffcv_train.system.errors import printable
from ffcv_train.system.streams import silence_stdout

_REDRAW_SECONDS = 0.2


class _Console(Console):
    """Says when nobody reads any more, where rich ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class ProgressLine:
    """One line of progress; `plain_interval` seconds lie between lines where stdout is no terminal.

    Where stdout goes away, a pipe's reader or a terminal, the work goes on in silence.

    `due` says whether a call of `show` would show anything, so that its text need not be made for nothing. Nothing
    runs in the background: the line moves when `show` is called.
    """

    def __init__(self, plain_interval: float = 30.0, console: Console | None = None) -> None:
        self.console = console or _Console(highlight=False, soft_wrap=True)
        self._interval = _REDRAW_SECONDS if self.console.is_terminal else plain_interval
        # A plain line comes after an interval, when there is something to say.
        self._shown_at = -math.inf if self.console.is_terminal else time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def due(self) -> bool:
        """Whether an interval has passed since the line was last shown."""
        return time.monotonic() - self._shown_at >= self._interval

    def show(self, head: str, step: int, steps: int, details: str) -> None:
        """Show `head`, that `step` of `steps` is done, and `details`, if `due`."""
        if not self.due():
            return
        self._shown_at = time.monotonic()
        head = printable(head)
        if not self.console.is_terminal:
            self.print(f"{head} {step}/{steps}  {details}")
            return
        try:
            self._redraw(head, step, steps, details)
        except OSError:
            self._fall_silent()

    def _redraw(self, head: str, step: int, steps: int, details: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.fields[head]}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task(details, total=steps, head=head)
            self._bar.start()
        self._bar.update(self._task, description=details, completed=step, total=steps, head=head, refresh=True)

    def print(self, text: str) -> None:
        """Print a line of its own, above the progress line; names in it do not steer the terminal."""
        try:
            self.console.print(printable(text), markup=False, highlight=False)
        except OSError:
            self._fall_silent()

    def close(self) -> None:
        """Remove the line from the terminal; a later `show` starts a new one."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            try:
                bar.stop()
            except OSError:
                self._fall_silent()

    def _fall_silent(self) -> None:
        self.console.quiet = True
        if self.console.file is sys.stdout:
            silence_stdout()


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3:07 or 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
