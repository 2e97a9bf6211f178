"""Worker processes whose death is noticed, and who notice ours.

Each worker has a pipe of its own and one assignment at a time. A worker that dies closes its end, which the parent sees
at once; a parent that dies closes all of them, upon which the workers end. No helper threads, no shared locks that a
dead process could hold: nothing can wait for ever.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

from ffcv_train.data.convert.encoding import EncodedChunk, Encoding, Task
from ffcv_train.data.convert.worker import Assignment, work
from ffcv_train.system.errors import UserError

_IN_HAND_PER_WORKER = 4


class WorkerPool:
    """`count` processes that encode and write to the file `path`; a context that ends them, whatever happens.

    Raises `UserError` where not all of them start.
    """

    def __init__(self, count: int, encoding: Encoding, path: Path) -> None:
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        # spawn, because forking a process with threads (torch's, OpenCV's) can deadlock the child.
        context = multiprocessing.get_context("spawn")
        # Ctrl-C reaches the whole process group. The mask is inherited: the parent alone shall answer. The tracker is
        # a helper of multiprocessing that the first start would otherwise bring up, undoing the mask.
        resource_tracker.ensure_running()
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                arguments = (theirs, encoding, path)
                process = context.Process(target=work, args=arguments, name=f"encode-{number}", daemon=True)
                self._workers[ours] = process
                process.start()
                theirs.close()
        except BaseException as error:
            started = sum(process.pid is not None for process in self._workers.values())
            self.close()
            if isinstance(error, OSError):
                raise UserError(
                    f"{started} of {count} worker processes started ({error.strerror}); use fewer with "
                    "--cfg.num_workers, or raise the limits on processes and files (ulimit -u -n, in a container its "
                    "pids-limit)"
                ) from None
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._workers)

    def map(
        self, tasks: Iterable[Task], place: Callable[[EncodedChunk], list[int]] | None = None
    ) -> Iterator[EncodedChunk]:
        """The chunk of each task, in the order of the tasks; no more than a few per worker are in memory.

        `place` is called with each in that order and says where its samples go in the file, by the workers; all are
        written when this ends. Without it they are thrown away.

        Raises `UserError` when a worker died, `OSError` when writing failed.
        """
        numbered = enumerate(tasks)
        idle, busy = list(self._workers), dict[Connection, int]()
        owners: dict[int, Connection] = {}
        assignments = {connection: Assignment() for connection in self._workers}
        done: dict[int, EncodedChunk] = {}
        given = taken = 0
        while True:
            for connection in idle.copy():
                assignment = assignments[connection]
                if given - taken < _IN_HAND_PER_WORKER * len(self._workers):
                    assignment.number, assignment.task = next(numbered, (-1, None))
                if assignment.task is not None:
                    owners[given] = connection
                    given += 1
                elif not assignment.positions:
                    continue
                self._send(connection, assignment)
                assignments[connection] = Assignment()
                idle.remove(connection)
                busy[connection] = assignment.number
            if taken in done:
                finished = done.pop(taken)
                assignments[owners.pop(taken)].positions[taken] = place(finished) if place else []
                taken += 1
                yield finished
            elif busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    number, chunk = busy.pop(ready), self._receive(ready)
                    if chunk is not None:
                        done[number] = chunk
                    idle.append(ready)
            else:
                return

    def close(self) -> None:
        """End the processes at once; they hold nothing worth saving."""
        for connection, process in self._workers.items():
            connection.close()
            if process.pid is not None:
                process.kill()
                process.join()
        self._workers = {}

    def _send(self, connection: Connection, assignment: Assignment) -> None:
        try:
            connection.send(assignment)
        except OSError:
            raise self._died(connection) from None

    def _receive(self, connection: Connection) -> EncodedChunk | None:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            raise self._died(connection) from None
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, str):
            if answer.rstrip().endswith("MemoryError"):
                raise UserError("a worker process ran out of memory; use fewer with --cfg.num_workers")
            raise RuntimeError(f"in a worker process:\n{answer}")
        return answer

    def _died(self, connection: Connection) -> UserError:
        process = self._workers[connection]
        process.join(5)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended ({code})"
        advice = "; memory was probably short, use fewer with --cfg.num_workers" if code == -signal.SIGKILL else ""
        return UserError(f"a worker process {how} before its work was done{advice}")
