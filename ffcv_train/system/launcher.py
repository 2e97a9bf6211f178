"""Torchrun's agent, which started this process: where it is killed, nobody is left to end the ranks but they."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 60.0
"""For a checkpoint; where the other ranks have ended already, this one waits for them in vain"""


@contextlib.contextmanager
def ends_with_launcher() -> Iterator[None]:
    """A context in which this process gets a SIGTERM where torchrun's agent dies, and ends within a minute of it.

    Without such an agent nothing happens: other launchers may be gone long before their ranks.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    left = threading.Event()
    threading.Thread(target=_watch, args=(os.getppid(), left), name="launcher", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(parent: int, left: threading.Event) -> None:
    while os.getppid() == parent:
        if left.wait(_POLL_SECONDS):
            return
    rank = os.environ.get("RANK", "0")
    _say(f"torchrun's agent (process {parent}) has ended without a word; rank {rank} stops")
    os.kill(os.getpid(), signal.SIGTERM)
    if not left.wait(_GRACE_SECONDS):
        _say(f"rank {rank} waited {_GRACE_SECONDS:.0f} s in vain for the other ranks to stop with it, and ends")
        os._exit(128 + signal.SIGTERM)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {sentence}", file=sys.stderr, flush=True)
