"""Worker processes behind torch's DataLoader: their start may fail, they may hang or die, and nothing waits for ever.

Torch waits without bound in three places: at the end for workers that failed to start together, for a batch, and for
the answer of a worker that hands one over. Ours ignore the signals that it would end them by, because a scheduler's
reach them as well as the trainer, who first finishes its step.
"""

import contextlib
import multiprocessing.util
import queue
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ffcv_train.data.loading.waiting import POLL_SECONDS, Wait
from ffcv_train.system.errors import UserError

_DYING_SECONDS = 1.0

_Asked = queue.SimpleQueue[bool]


class ImageWorkers(DataLoader[Any]):
    """A DataLoader of persistent worker processes, ended by `close`.

    Raises `UserError` where processes do not start or have ended, and what `wait` raises.
    """

    _iterator: "_Iterator | None"

    def batches(self, wait: Wait) -> Iterator[Any]:
        """The results of the batches that the sampler has now; made ready as `wait` says."""
        with _worker_ends(), _no_news_of_children():
            self.wait_as(wait)
            iterator = iter(self)
            self.wait_as(wait)
            return iterator

    def wait_as(self, wait: Wait) -> None:
        """From now on workers are waited for as `wait` says."""
        if self._iterator is not None:
            self._iterator.wait = wait

    def close(self) -> None:
        """End the workers at once, whatever they do; the loader cannot be used again."""
        if self._iterator is not None:
            self._iterator.end()
            self._iterator = None

    def _get_iterator(self) -> "_Iterator":
        try:
            return _Iterator(self)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the loader's {self.num_workers} worker processes do not start ({_first_line(error)}); lower "
                "--data.num_workers, or raise the limit of open files (ulimit -n) or of processes (ulimit -u), in a "
                "container its shared memory (docker's shm-size)"
            ) from None


class _Iterator(_MultiProcessingDataLoaderIter):
    """Torch's iterator, but that a thread asks for the results, who may hang, and that it ends by killing."""

    def __init__(self, loader: ImageWorkers) -> None:
        self.wait = Wait("the workers")
        self._asked: _Asked = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[bool, Any] | Exception] = queue.SimpleQueue()
        self._asking: threading.Thread | None = None
        self._is_asked = False
        self._over = False
        self._index_queues: list[Any] = []
        self._workers: list[Any] = []
        self._worker_pids_set = False
        try:
            super().__init__(loader)
        except BaseException:
            self.end()
            raise
        # At the interpreter's end, before multiprocessing waits for the processes of a loader that nobody closed.
        multiprocessing.util.Finalize(self, _kill, (self._workers,), exitpriority=10)

    def __next__(self) -> Any:
        with _worker_ends():
            return super().__next__()

    def end(self) -> None:
        """Kill the workers; may be called twice."""
        if self._over:
            return
        self._over = self._shutdown = True
        self._asked.put(False)
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False
        if hasattr(self, "_pin_memory_thread"):
            self._pin_memory_thread_done_event.set()  # noticed within seconds, and nobody waits for it
        _kill(self._workers)
        for tasks in self._index_queues:
            tasks.cancel_join_thread()
            tasks.close()

    def _shutdown_workers(self) -> None:
        # Where torch would end them: when it is collected, and at the interpreter's end.
        self.end()

    def _try_get_data(self, timeout: float = POLL_SECONDS) -> tuple[bool, Any]:
        if self._asking is None:
            # Not before the processes are forked.
            arguments = (weakref.ref(self), self._asked, self._answers)
            self._asking = threading.Thread(target=_ask, args=arguments, name="results", daemon=True)
            self._asking.start()
        if not self._is_asked:
            self._asked.put(True)
            self._is_asked = True
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            answer = (False, None)
        else:
            self._is_asked = False
        if isinstance(answer, Exception):
            raise answer
        if not answer[0]:
            self.wait.check()
        return answer

    def ask(self) -> tuple[bool, Any]:
        """What torch does in `_try_get_data`; may wait for ever for a process that is stopped."""
        return super()._try_get_data(POLL_SECONDS)


def _ask(iterator: "weakref.ref[_Iterator]", asked: _Asked, answers: "queue.SimpleQueue[Any]") -> None:
    while asked.get():
        who = iterator()
        if who is None:
            return
        try:
            answer: tuple[bool, Any] | Exception = who.ask()
        except Exception as error:
            answer = error
        del who
        answers.put(answer)
        del answer


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_DYING_SECONDS)


@contextlib.contextmanager
def _no_news_of_children() -> Iterator[None]:
    """Keep PyTorch from raising wherever the main thread is when a worker dies; who waits for data notices anyway."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


@contextlib.contextmanager
def _worker_ends() -> Iterator[None]:
    """Say in a sentence that a worker process was killed."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        # What a dead worker leaves half-sent ends in one of the latter.
        # "Caught …" is what PyTorch says of an exception in a worker that is alive.
        died = "DataLoader worker" in str(error) and not str(error).startswith("Caught ")
        if isinstance(error, RuntimeError) and not died:
            raise
        raise UserError(
            f"a worker process of the loader has ended ({_first_line(error)}); where memory is short, lower "
            "--data.num_workers, in a container raise its shared memory (docker's shm-size)"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
