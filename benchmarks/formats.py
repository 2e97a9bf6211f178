"""Images per second from a .beton, a zip archive, the same archive cached in memory, and a folder.

    python -m benchmarks.formats --folder photos --workers 2 --resolution 160 --json formats.json

All hold the same photographs: the folder's files as they are in folder and zip; JPEGs of at most 500 pixels, as
write_dataset.py makes them, in the .beton. All yield uint8 batches of the same random resized crops with flips; with
--policy, augmented: in the worker processes for zip and folder, on the batch (in this process) for the .beton. Every
contender keeps its workers; in each round every one of them runs one epoch of --repeats passes, in turn. Files are in
the page cache. Medians, and the spread. memory: what --memory-workers worker processes hold after an epoch, their
shares of shared memory included (Pss of smaps_rollup), and what the archive's cache holds besides, once.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.augment import policy
from ffcv_train.cli.main import run_main
from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.sources.image_set import open_image_set
from ffcv_train.system.distributed import Process
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json
from ffcv_train.system.resources import usable_cores

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CPU = torch.device("cpu")
ALONE = Process(0, 1, 0, 1, CPU)
CONTENDERS = ("beton", "zip", "zip, cached", "folder")


def main() -> None:
    """Parse, prepare, measure, show."""
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name, contextlib.ExitStack() as stack:
        scratch = Path(name)
        prepare(options.folder, scratch, options.workers)
        memory = {contender: memory_mb(contender, options, scratch) for contender in ("zip", "zip, cached", "folder")}
        loaders = {}
        for contender in CONTENDERS:
            loaders[contender] = loader_of(contender, options, scratch, options.workers)
            stack.callback(loaders[contender].close)
        rates: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
        for number in range(options.epochs + 1):
            for contender in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
                rate = epoch_rate(loaders[contender], contender, options, number)
                if number:  # the first one starts workers and fills caches
                    rates[contender].append(rate)
    rows = [
        {
            "format": contender,
            "images_per_s": statistics.median(rates[contender]),
            "rates": rates[contender],
            "ratio": statistics.median(a / b for a, b in zip(rates["beton"], rates[contender], strict=True)),
            "memory_mb": memory.get(contender),
        }
        for contender in CONTENDERS
    ]
    show(rows, options)
    if options.json is not None:
        settings = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"rows": rows, "settings": settings, **describe_environment(CPU)})


def parse() -> argparse.Namespace:
    """The options, checked as far as can be told without reading the data."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of photographs in class folders")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="threads or processes [all cores]")
    parser.add_argument("--memory-workers", type=int, default=4, help="worker processes whose memory is taken [4]")
    parser.add_argument("--resolution", type=int, default=160, help="side in pixels [160]")
    parser.add_argument("--policy", default="none", choices=("none", "rand_augment", "three_augment"), help="[none]")
    parser.add_argument("--epochs", type=int, default=5, help="measured epochs [5]")
    parser.add_argument("--repeats", type=int, default=3, help="passes over the photographs in an epoch [3]")
    parser.add_argument("--batch-size", type=int, default=100, help="[100]")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    check_least(options, workers=1, memory_workers=1, resolution=1, epochs=1, repeats=1, batch_size=1)
    check_folders(options)
    return options


def prepare(folder: Path, scratch: Path, workers: int) -> None:
    """The photographs as train.zip and train.beton in `scratch`."""
    make_zips(folder, scratch, "train")
    convert(
        WriteConfig(
            data_dir=str(folder),
            write_path=str(scratch / "train.beton"),
            write_mode="jpg",
            max_resolution=500,
            num_workers=workers,
        )
    )


def loader_of(contender: str, options: argparse.Namespace, scratch: Path, workers: int) -> BetonLoader | ImageLoader:
    """A contender's training loader."""
    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    if contender == "beton":
        return BetonLoader(
            open_beton(scratch / "train.beton"),
            options.batch_size,
            crop=crop,
            resolution=options.resolution,
            device=CPU,
            order="random",
            num_workers=workers,
        )
    path, kind = (options.folder, "folder") if contender == "folder" else (scratch / "train.zip", "zip")
    return ImageLoader(
        open_image_set(path, kind),
        options.batch_size,
        crop=crop,
        resolution=options.resolution,
        process=ALONE,
        num_workers=workers,
        augment=AugmentConfig(policy=options.policy),
        cache=contender == "zip, cached",
    )


def epoch_rate(loader: BetonLoader | ImageLoader, contender: str, options: argparse.Namespace, number: int) -> float:
    """Images per second of some passes, which are epochs of their own."""
    config = AugmentConfig(policy=options.policy)
    images, start = 0, time.perf_counter()
    for repeat in range(options.repeats):
        epoch = number * options.repeats + repeat
        loader.set_epoch(epoch)
        for batch in loader.epoch():
            if contender == "beton":
                policy.apply(batch.images, policy.plan(config, 0, epoch, batch.keys))
            images += len(batch.labels)
    if not images:
        raise UserError(f"{options.folder} has fewer photographs than a batch of {options.batch_size}")
    return images / (time.perf_counter() - start)


def memory_mb(contender: str, options: argparse.Namespace, scratch: Path) -> float:
    """What the workers of a contender hold after an epoch, and its cache."""
    with contextlib.closing(loader_of(contender, options, scratch, options.memory_workers)) as loader:
        before = {process.pid for process in psutil.Process().children()}
        batches: Iterator[Any] = loader.epoch()
        next(batches)
        workers = [process for process in psutil.Process().children() if process.pid not in before]
        for _ in batches:
            pass
        held = sum(process.memory_full_info().pss for process in workers)
        assert isinstance(loader, ImageLoader)
        return (held + loader.cache_bytes) / 1e6


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table."""
    title = f"{options.resolution} px, {options.workers} workers, policy {options.policy}"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title)
    for head in ("format", "images/s", "spread", "beton ÷ it", f"{options.memory_workers} workers hold, MB"):
        table.add_column(head, justify="left" if head == "format" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["format"],
            f"{row['images_per_s']:,.0f}",
            f"{min(row['rates']):,.0f}–{max(row['rates']):,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['memory_mb']:,.0f}" if row["memory_mb"] is not None else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    run_main(main)
