"""Loaders whose storage, threads or worker processes do not answer: said, given up, and closed without waiting."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import CenterCrop
from ffcv_train.data.loading import image_loader as image_loader_module
from ffcv_train.data.loading import waiting
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.loading.threads import Threads
from ffcv_train.data.loading.waiting import NoBatchError
from ffcv_train.data.sources.image_set import open_image_set
from ffcv_train.system.errors import UserError
from tests.support.limits import no_hang
from tests.support.photographs import ROOT, crops_of_photographs
from tests.support.runs import ALONE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photographs of two classes."""
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(crops_of_photographs(24, 34, 60)):
        path = root / ("ant", "bee")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def workers_of(folder: Path, count: int = 2) -> ImageLoader:
    images = open_image_set(folder, "folder")
    return ImageLoader(images, 4, crop=CenterCrop(0.9), resolution=24, process=ALONE, num_workers=count)


def threads_of(beton: Path, order: str = "sequential") -> BetonLoader:
    return BetonLoader(
        *(open_beton(beton), 8),
        crop=CenterCrop(0.9),
        resolution=24,
        device=torch.device("cpu"),
        order=order,  # type: ignore[arg-type]
        num_workers=2,
    )


def processes() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize(
    "fault", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.EMFILE, "")]
)
def test_a_second_worker_that_does_not_start_takes_the_first_one_along(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    before, started = processes(), []
    start = multiprocessing.process.BaseProcess.start

    def start_one(self: multiprocessing.process.BaseProcess) -> None:
        if started:
            raise fault
        start(self)
        started.append(self.pid)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_one)
    refused = pytest.raises(UserError, match=r"the loader's 2 worker processes do not start .*; lower --data\.num_work")
    with contextlib.closing(workers_of(folder)) as loader, refused, no_hang():
        next(loader.epoch())
    assert len(started) == 1 and processes() == before


def test_a_stopped_worker_is_said_and_given_up_and_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_STALL_SECONDS", 0.2)
    before = processes()
    loader = workers_of(folder)
    batches = loader.epoch()
    next(batches)
    for pid in processes() - before:
        os.kill(pid, signal.SIGSTOP)
    batches.close()
    with no_hang(), pytest.warns(RuntimeWarning, match=r"no batch from .* for \d+ s, since") as said:
        batches = loader.epoch(lambda: len(said) > 0)
        with pytest.raises(NoBatchError, match=f"no batch from {folder}"):
            list(batches)
        loader.close()
    assert processes() == before


def test_a_result_that_cannot_be_sent_ends_its_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loader_module, "collate", lambda images: lambda: images)  # nothing pickles a function
    ended = pytest.raises(UserError, match="a worker process of the loader has ended")
    with contextlib.closing(workers_of(folder, 1)) as loader, no_hang(), ended:
        list(loader.epoch())


def test_the_thread_that_asks_ends_with_the_loader(folder: Path) -> None:
    with contextlib.closing(workers_of(folder)) as loader:
        list(loader.epoch())
        asking = next(thread for thread in threading.enumerate() if thread.name == "results")
    asking.join(120)
    assert not asking.is_alive()


NOT_CLOSED = """
import sys
from ffcv_train import CenterCrop, Loader
from ffcv_train.data.loading import waiting
waiting._STALL_SECONDS = 1e9  # a busy machine may take a minute to start workers
loader = Loader(sys.argv[1], 4, crop=CenterCrop(), resolution=24, device="cpu", num_workers=2)
print(next(iter(loader)).images.shape[0])
"""


def test_a_program_ends_whose_loader_nobody_closed(folder: Path) -> None:
    """Multiprocessing waits for all processes at the end."""
    command = [sys.executable, "-c", NOT_CLOSED, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


SMALL_SHARED_MEMORY = """
import sys
from ffcv_train import CenterCrop, Loader
from ffcv_train.cli.main import run_main
from ffcv_train.data.loading import waiting
waiting._STALL_SECONDS = 1e9
def main():
    for batch in Loader(sys.argv[1], 8, crop=CenterCrop(), resolution=256, device="cpu", num_workers=2):
        pass
run_main(main)
"""


def test_too_little_shared_memory_is_a_sentence(folder: Path) -> None:
    """A container's /dev/shm has 64 MiB by default; here 1 MiB, for batches of 1.5."""
    small = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run([*small, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own, such as a small /dev/shm")
    program = [sys.executable, "-c", SMALL_SHARED_MEMORY, str(folder)]
    done = subprocess.run(
        [*small, f'{mount} && exec "$@"', "sh", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stderr.splitlines()
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert said[0].startswith("error: a worker process has no shared memory for a batch of 1.5 MiB (")
    assert (
        "/dev/shm has 0 of 1 MiB free): in a container raise it (docker's shm-size, 8g say), or lower num_workers"
        in said[0]
    )


@contextlib.contextmanager
def hanging(loader: BetonLoader, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, threads that decode wait for ever."""
    released, decode = threading.Event(), loader._decode
    monkeypatch.setattr(loader, "_decode", lambda *arguments: (released.wait(), decode(*arguments)))
    yield
    released.set()


@pytest.mark.parametrize("order", ["sequential", "quasi_random"])
def test_threads_that_hang_are_given_up_and_left(jpg_beton: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    loader = threads_of(jpg_beton, order)
    content = loader._content
    with hanging(loader, monkeypatch), no_hang():
        with pytest.raises(NoBatchError, match=f"no batch from {jpg_beton}"):
            next(loader.epoch(lambda: True))
        with pytest.raises(UserError, match="make a new loader"):
            next(loader.epoch())
        loader.close()
        assert loader._content is content, "a thread may still read it"


def test_threads_that_do_not_start_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_two(self: threading.Thread) -> None:
        if self.name == "decode_2":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=r"2 of 4 threads of the loader started .*lower --data\.num_workers"):
        Threads(4, "decode")
    deadline = time.monotonic() + 120
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, "the first two wait for ever"
        time.sleep(0.01)


def test_what_is_submitted_is_done_or_cancelled() -> None:
    threads = Threads(1, "one")
    gate = threading.Event()
    first, second, third = threads.submit(gate.wait), threads.submit(divmod, 7, 2), threads.submit(divmod, 7, 0)
    while not first.running():
        time.sleep(0.001)
    assert not threads.close(0.05) and second.cancelled() and third.cancelled()
    gate.set()
    assert first.result(timeout=120) is True and threads.close(120)
    threads = Threads(2, "two")
    failed = threads.submit(divmod, 7, 0)
    assert threads.submit(divmod, 7, 2).result(timeout=120) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        failed.result(timeout=120)
    assert threads.close(120)
