"""What a data set costs by its number of samples: time to open, memory that ranks do not share, order, first batch.

    python -m benchmarks.scale --samples 1281167,14000000 --world-size 8 --json scale.json

The images are black, of one pixel, so that nothing but the tables and the loader's own Python counts. Two fresh
processes are ranks 0 and 1 of --world-size; memory is what rank 0 holds for itself while both hold the set (Private of
smaps_rollup, less what it held before it opened), and the peak is that of anonymous memory, taken every 2 ms. Times are
rank 0's: the clock's, and in brackets the processor's, which other programs on the machine change less.

loader: the CPU time that an image takes besides its decoding, in all threads, and in the main thread alone. The
interpreter's lock (GIL) is held for no longer than that, so that --decode-ms over it is a number of threads that keep
decoding in parallel.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.loading.tiny_set import PIXEL_BYTES, write_tiny_set
from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.format.pagefile import DEFAULT_PAGE_SIZE
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json
from ffcv_train.system.resources import give_back_memory

CPU = torch.device("cpu")
_PATIENCE_SECONDS = 600.0
_RANKS = 2
_WARM_SAMPLES = 4096


def main() -> None:
    """Parse, make the sets, measure, show."""
    options = parse()
    results = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        warm = Path(name) / "warm.beton"
        write_tiny_set(warm, _WARM_SAMPLES, 10)
        for samples in options.samples:
            path = Path(name) / f"{samples}.beton"
            write_tiny_set(path, samples, min(options.classes, samples), options.image_bytes, options.turned)
            results.append(measure(path, warm, options))
            path.unlink()
    show(results, options)
    if options.json is not None:
        settings = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"results": results, "settings": settings, **describe_environment(CPU)})


def parse() -> argparse.Namespace:
    """The options, checked."""
    parser = parser_of(__doc__)
    parser.add_argument("--samples", default="1281167,14000000", help="numbers of samples [1281167,14000000]")
    parser.add_argument("--classes", type=int, default=21841, help="[21841]")
    parser.add_argument("--image-bytes", type=int, default=PIXEL_BYTES, help="what an image takes of the file [3]")
    parser.add_argument("--turned", type=int, default=0, help="row that the allocation table begins with [0]")
    parser.add_argument("--order", default="random", choices=("random", "quasi_random"), help="[random]")
    parser.add_argument("--world-size", type=int, default=8, help="[8]")
    parser.add_argument("--batch-size", type=int, default=256, help="of each rank [256]")
    parser.add_argument("--batches", type=int, default=200, help="batches that are timed, at most an epoch [200]")
    parser.add_argument("--threads", default="1,4,16", help="numbers of decoding threads [1,4,16]")
    parser.add_argument("--decode-ms", type=float, default=0.41, help="CPU time of decoding one image [0.41]")
    parser.add_argument("--scratch", type=Path, help="folder for the sets [the system's]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    for name in ("samples", "threads"):
        text = getattr(options, name)
        if not all(part.isdigit() and int(part) for part in text.split(",")):
            raise UserError(f"--{name} must be whole numbers from 1, with commas between them, not {text}")
        setattr(options, name, [int(part) for part in text.split(",")])
    check_least(options, classes=1, image_bytes=PIXEL_BYTES, turned=0, world_size=_RANKS, batch_size=1, batches=1)
    if options.image_bytes > DEFAULT_PAGE_SIZE:
        raise UserError(f"--image-bytes must be at most a page, {DEFAULT_PAGE_SIZE}, not {options.image_bytes}")
    least = 2 * options.batch_size * options.world_size
    if min(options.samples) < least:
        raise UserError(f"--samples={min(options.samples)} are fewer than two global batches, {least}; give more")
    check_folders(options)
    return options


def measure(path: Path, warm: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the set at `path` costs rank 0 while rank 1 does the same."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(_RANKS), context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(rank, path, warm, options, barrier, found), daemon=True)
        for rank in range(_RANKS)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise UserError(f"measuring {path.name} failed; see above")
    return found.get()


@dataclass
class Watch:
    """Steps of one rank: how long each took, what memory the process held for itself afterwards and at its peak."""

    samples: int
    barrier: Barrier
    figures: dict[str, Any] = field(default_factory=dict)
    _base: int = 0

    def begin(self) -> None:
        """Memory counts from here."""
        give_back_memory()
        self.barrier.wait(_PATIENCE_SECONDS)
        self._base = _private_bytes()
        self.barrier.wait(_PATIENCE_SECONDS)

    def step(self, name: str, action: Callable[[], Any]) -> Any:
        """Do `action`; enters `name`_s, `name`_cpu_s, `name`_private and `name`_peak in bytes per sample."""
        with _Peak() as peak:
            start, cpu = time.perf_counter(), time.process_time()
            result = action()
            cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
        give_back_memory()
        self.barrier.wait(_PATIENCE_SECONDS)
        private = _private_bytes() - self._base
        self.figures |= {f"{name}_s": seconds, f"{name}_cpu_s": cpu}
        self.figures |= {f"{name}_private": private / self.samples, f"{name}_peak": peak.bytes / self.samples}
        self.barrier.wait(_PATIENCE_SECONDS)
        return result


class _Peak:
    """The most anonymous memory that a block added, in bytes."""

    def __enter__(self) -> "_Peak":
        self.bytes, self._over = 0, threading.Event()
        self._base = _status_bytes("RssAnon")
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, _status_bytes("RssAnon") - self._base)


def _private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) << 10


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10


def _rank(rank: int, path: Path, warm: Path, options: argparse.Namespace, barrier: Barrier, found: Any) -> None:
    try:
        figures = _measure_rank(rank, path, warm, options, barrier)
    except BaseException:
        barrier.abort()
        raise
    if rank == 0:
        found.put(figures)


def _loader(path: Path, options: argparse.Namespace, rank: int, threads: int, data_set: Any = None) -> BetonLoader:
    return BetonLoader(
        data_set or open_beton(path),
        options.batch_size,
        crop=RandomResizedCrop(),
        resolution=1,
        device=CPU,
        order=options.order,
        num_workers=threads,
        rank=rank,
        world_size=options.world_size,
    )


def _measure_rank(rank: int, path: Path, warm: Path, options: argparse.Namespace, barrier: Barrier) -> dict[str, Any]:
    torch.set_num_threads(1)
    # What is compiled or imported once counts for no set.
    warming = argparse.Namespace(**{**vars(options), "batch_size": 1})
    loader = _loader(warm, warming, rank, 1)
    list(loader)
    loader.close()
    watch = Watch(int(path.stem), barrier)
    watch.begin()
    data_set = watch.step("open", lambda: open_beton(path))
    watch.step("digest", data_set.digest)
    loader = watch.step("loader", lambda: _loader(path, options, rank, options.threads[0], data_set))
    watch.step("order", lambda: loader._plan.batches(0))
    batches = watch.step("first_batch", lambda: _begun(loader, 0, 0))
    batches.close()
    resumed = watch.step("resume", lambda: _begun(loader, 1, len(loader) // 2))
    resumed.close()
    loader.close()
    figures = watch.figures | {"samples": watch.samples, "threads": {}}
    for threads in options.threads:
        with_threads = _loader(path, options, rank, threads, data_set)
        barrier.wait(_PATIENCE_SECONDS)
        if rank == 0:
            figures["threads"][threads] = _steady(with_threads, min(options.batches, len(with_threads) - 1))
        barrier.wait(_PATIENCE_SECONDS)
        with_threads.close()
    return figures


def _begun(loader: BetonLoader, epoch: int, first_batch: int) -> Any:
    loader.set_epoch(epoch, first_batch)
    batches = loader.epoch()
    next(batches)
    return batches


def _steady(loader: BetonLoader, count: int) -> dict[str, float]:
    """Images per second and microseconds of CPU per image while `count` batches go by."""
    batches = _begun(loader, 2, 0)
    start, cpu, main_cpu = time.perf_counter(), time.process_time(), time.thread_time()
    images = sum(len(next(batches).labels) for _ in range(count))
    main_cpu, cpu = time.thread_time() - main_cpu, time.process_time() - cpu
    rate = images / (time.perf_counter() - start)
    batches.close()
    return {"images_per_s": rate, "cpu_us": 1e6 * cpu / images, "main_us": 1e6 * main_cpu / images}


STEPS = {
    "open": "open",
    "digest": "digest for resuming",
    "loader": "loader",
    "order": "order of an epoch",
    "first_batch": "first batch, with the order",
    "resume": "first batch from mid-epoch",
}


def show(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the tables."""
    console = Console(width=120, highlight=False)
    for found in results:
        title = f"{found['samples']:,} samples, {options.order}, rank 0 of {options.world_size}"
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title)
        for head in ("", "seconds", "of CPU", "private bytes a sample after it", "at most during it, more"):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        for key, what in STEPS.items():
            table.add_row(
                what,
                f"{found[f'{key}_s']:.2f}",
                f"{found[f'{key}_cpu_s']:.2f}",
                f"{found[f'{key}_private']:.1f}",
                f"{found[f'{key}_peak']:.1f}",
            )
        console.print(table, "")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for head in ("threads", "images/s", "CPU µs an image", "main thread", f"threads for {options.decode_ms} ms"):
            table.add_column(head, justify="right", no_wrap=True)
        for threads, one in found["threads"].items():
            table.add_row(
                str(threads),
                f"{one['images_per_s']:,.0f}",
                f"{one['cpu_us']:.1f}",
                f"{one['main_us']:.1f}",
                f"{1e3 * options.decode_ms / one['cpu_us']:.0f}",
            )
        console.print(table, "")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    run_main(main)
