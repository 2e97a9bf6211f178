"""Threads that read and decode; one that hangs in the kernel keeps neither the loader nor the process from ending.

The executor of the standard library is joined at the interpreter's end, whatever its threads wait for.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ffcv_train.system.errors import UserError

_Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]


class Threads:
    """`count` threads, started at once, that do what is submitted in its order. Raises `UserError` where none start."""

    def __init__(self, count: int, name: str) -> None:
        self._tasks: _Tasks = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._tasks, count)
        self._end.atexit = False
        try:
            for number in range(count):
                thread = threading.Thread(target=_work, args=(self._tasks,), name=f"{name}_{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:
            self._end()
            raise UserError(
                f"{len(self._threads)} of {count} threads of the loader started ({error}); lower --data.num_workers, "
                "or raise the limit on processes (ulimit -u, in a container its pids-limit)"
            ) from None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of `function(*arguments)`."""
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def close(self, seconds: float) -> bool:
        """Cancel what has not begun and wait at most `seconds` for the rest; whether all threads have ended."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        self._end()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def _end(tasks: _Tasks, count: int) -> None:
    for _ in range(count):
        tasks.put(None)


def _work(tasks: _Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if future.set_running_or_notify_cancel():
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        # While this thread waits for the next task, it must not keep the buffers of the last one.
        del task, future, function, arguments
