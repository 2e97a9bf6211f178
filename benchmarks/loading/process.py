"""A contender in a process of its own: made once, then told to run an epoch at a time.

Talks in lines on its own pipe: the child says a JSON object when its first batch is there and after each epoch; the
parent says "start" and "epoch N" (N passes over the images), and closes the pipe to end it.

Sampling memory every few milliseconds takes a third of a core, and more from loaders that hold more memory or have
more processes. So a contender is either watched or timed, never both.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loading.contenders import CONTENDERS, Files
from ffcv_train.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
_SAMPLING_SECONDS = 0.02
_CLOCK_TICK = 0.01


class Contender:
    """A running contender; `start` says when its first batch came, `epoch` runs one.

    With `watched` its memory is sampled from the end of its imports on, for `peak_memory`, and its times mean nothing.
    """

    def __init__(
        self, name: str, files: Files, resolution: int, batch_size: int, workers: int, watched: bool = False
    ) -> None:
        self.name = name
        self._watched = watched
        order: dict[str, Any] = {
            "name": name,
            "files": {key: str(path.resolve()) for key, path in asdict(files).items()},
        }
        order |= {"resolution": resolution, "batch_size": batch_size, "workers": workers}
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loading.process", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        self._tree = psutil.Process(self._process.pid)
        self._passes = 1
        self._line()
        self._peak = self.import_memory = self._memory() if watched else 0
        self._say("start")
        self.start = {**self._answer(), "process_first_batch_s": time.perf_counter() - start}
        drained = self._answer()
        assert drained == {"drained": True}

    def last(self, seconds: float) -> None:
        """Let each later epoch be as many passes over the images as take `seconds`, by the second of two run now."""
        self._passes = 1
        # What a loader has prepared while it waited comes at once: a pass that holds it says nothing of later ones.
        self.epoch()
        self._passes = max(1, math.ceil(seconds / self.epoch()["seconds"]))

    def epoch(self) -> dict[str, float]:
        """`images`, `passes`, `seconds`, `cpu_seconds` (of the whole process tree) and `other_cores` of one epoch.

        `other_cores` is how many cores all other programs on the machine used meanwhile.
        """
        before, machine_before = self._cpu_seconds(), _machine_cpu_seconds()
        self._say(f"epoch {self._passes}")
        found = self._answer()
        cpu, machine = self._cpu_seconds() - before, _machine_cpu_seconds() - machine_before
        found["other_cores"] = max(0.0, machine - cpu) / found["seconds"]
        return {**found, "passes": self._passes, "cpu_seconds": max(_CLOCK_TICK, cpu)}

    @property
    def peak_memory(self) -> int:
        """Bytes that the watched process tree held at most: anonymous and shared memory, without mapped files."""
        assert self._watched
        return self._peak

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, float]:
        return self._watched_line() if self._watched else self._line()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"the loader {self.name!r} has failed, with exit status {self._process.wait()}; see above")
        return json.loads(line)

    def _watched_line(self) -> dict[str, float]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_SAMPLING_SECONDS):
                self._peak = max(self._peak, self._memory())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return self._line()
        finally:
            done.set()
            watcher.join()

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._tree, *self._tree.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []  # it has failed, as the missing answer will say

    def _memory(self) -> int:
        total = 0
        for process in self._family():
            try:
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
        return total

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def _machine_cpu_seconds() -> float:
    """What all programs on the machine have used."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def main() -> None:
    """The child's side."""
    order = json.loads(sys.argv[1])
    # What a loader prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    files = Files(**{key: Path(path) for key, path in order["files"].items()})
    _import(order["name"])
    answer()
    epoch = None
    for command in sys.stdin:
        start = time.perf_counter()
        if command.strip() == "start":
            epoch = CONTENDERS[order["name"]](files, order["resolution"], order["batch_size"], order["workers"])
            iterator = iter(epoch())
            next(iterator)
            answer(first_batch_s=time.perf_counter() - start)
            for _ in iterator:
                pass
            answer(drained=True)
            continue
        assert epoch is not None
        images = 0
        for _ in range(int(command.split()[1])):
            for batch in epoch():
                images += len(batch)
        answer(images=images, seconds=time.perf_counter() - start)


def _import(name: str) -> None:
    """Import what the contender will, so that `first_batch_s` is the loader's own start."""
    import torch  # noqa: F401

    if name == "ffcv":
        import ffcv.loader  # noqa: F401
    elif name.startswith("ours"):
        import ffcv_train.data.loading.beton_loader  # noqa: F401
    else:
        import torchvision.transforms.v2  # noqa: F401


if __name__ == "__main__":
    main()
