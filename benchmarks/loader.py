"""How fast the loader is, beside FFCV's own, torchvision's, webdataset's, Pillow's and (where installed) DALI's.

    python benchmarks/loader.py --folder ImageNet/train --workers 2 --resolutions 160,224 --json loader.json

All read the same photographs (longest side 500 pixels, JPEG quality 90), held by the page cache, and yield uint8
batches of random resized crops with flips. Each contender is a process of its own that stays alive; in each round
every one of them runs one epoch, in turn. FFCV and the file readers get JPEGs without restart markers, as their own
tools write them; the pixels are the same. With --beton all read that file as it is.

images/s: median of the epochs, and their spread. ratio: median over rounds of ours to that one. CPU: milliseconds of
all its processes per image, which other programs on the machine disturb less. first batch: from the loader's
construction, after imports and with numba's disk cache filled. memory: peak of anonymous and shared memory of all its
processes (mapped files, that is the page cache, do not count), and in brackets what came after imports.
"""

import argparse
import contextlib
import platform
import shlex
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.loading.contenders import BETON_READERS, CONTENDERS, Files, available
from benchmarks.loading.files import from_beton, from_folder
from benchmarks.loading.process import Contender
from ffcv_train.data.beton import open_beton
from ffcv_train.data.pool import usable_cores
from ffcv_train.errors import UserError, run_main
from ffcv_train.records import write_json

MODES = ("jpg", "proportion")
PACKAGES = ("torch", "torchvision", "ffcv", "numba", "webdataset", "pillow")


def main() -> None:
    """Parse, prepare, measure, print."""
    options = parse()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-", dir=options.scratch) as scratch:
        for mode in options.modes:
            if options.beton is not None:
                files, mode = from_beton(options.beton, Path(scratch), options.workers)
            else:
                files = from_folder(options.folder, Path(scratch), mode, options.images, options.workers)
            samples = len(open_beton(files.beton))
            if samples < options.batch_size:
                raise UserError(f"{samples} images are less than a batch of {options.batch_size}; lower --batch-size")
            names = [name for name in options.loaders if mode == "jpg" or name in BETON_READERS]
            if files.beton == files.plain_beton:
                names = [name for name in names if name != "ours, no tiles"]
            for resolution in options.resolutions:
                rows += measure(names, files, mode, resolution, options)
                show(rows[-len(names) :], mode, resolution)
    if options.json is not None:
        write_json(options.json, {"rows": rows, "machine": machine(), "command": shlex.join(sys.argv)})
        print(f"written: {options.json}")


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="photographs, a folder per class")
    source.add_argument("--beton", type=Path, help="a .beton, used as it is")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="threads or processes [all cores]")
    parser.add_argument("--resolutions", default="160,224", help="sides in pixels, comma-separated [160,224]")
    parser.add_argument("--modes", default=",".join(MODES), help="how --folder is stored: jpg, proportion (50%% raw)")
    parser.add_argument("--loaders", help=f"comma-separated, of: {'; '.join(CONTENDERS)} [all that are installed]")
    parser.add_argument("--epochs", type=int, default=5, help="measured epochs [5]")
    parser.add_argument("--images", type=int, default=2000, help="photographs of --folder in an epoch [2000]")
    parser.add_argument("--batch-size", type=int, default=250, help="[250]")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    for name in ("workers", "epochs", "images", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    try:
        options.resolutions = [int(word) for word in options.resolutions.split(",")]
    except ValueError:
        raise UserError(f"--resolutions takes sides such as 160,224, not {options.resolutions}") from None
    if min(options.resolutions) < 1:
        raise UserError("--resolutions: a side has at least one pixel")
    options.modes = options.modes.split(",") if options.beton is None else [""]
    unknown = sorted(set(options.modes) - set(MODES)) if options.beton is None else []
    if unknown:
        raise UserError(f"--modes: there is no mode {unknown[0]!r}, only {', '.join(MODES)}")
    options.loaders = options.loaders.split(",") if options.loaders else available()
    for name in options.loaders:
        if name not in CONTENDERS:
            raise UserError(f"--loaders: there is no loader {name!r}, only {'; '.join(CONTENDERS)}")
        if name not in available():
            raise UserError(f"--loaders: the package of {name!r} is not installed")
    return options


def measure(
    names: list[str], files: Files, mode: str, resolution: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row per contender."""
    with contextlib.ExitStack() as stack:
        contenders = []
        for name in names:
            # The first start may compile; only the second is measured.
            Contender(name, files, resolution, options.batch_size, options.workers).close()
            contender = Contender(name, files, resolution, options.batch_size, options.workers)
            stack.callback(contender.close)
            contenders.append(contender)
        for contender in contenders:
            contender.epoch()
        rounds = []
        for number in range(options.epochs):
            # Whoever is first in one round is last in the next.
            turn = contenders if number % 2 == 0 else contenders[::-1]
            rounds.append({contender.name: contender.epoch() for contender in turn})
        return [row(contender, rounds, names, mode, resolution, options) for contender in contenders]


def row(
    contender: Contender,
    rounds: list[dict[str, dict[str, float]]],
    names: list[str],
    mode: str,
    resolution: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What a contender's epochs say."""
    epochs = [one[contender.name] for one in rounds]
    rates = [epoch["images"] / epoch["seconds"] for epoch in epochs]
    cpu = sum(epoch["cpu_seconds"] for epoch in epochs)
    found: dict[str, Any] = {"loader": contender.name, "mode": mode, "resolution": resolution}
    found |= {"workers": options.workers, "batch_size": options.batch_size, "images": epochs[0]["images"]}
    found |= {"images_per_s": statistics.median(rates), "images_per_s_min": min(rates), "images_per_s_max": max(rates)}
    found["cpu_ms_per_image"] = 1e3 * cpu / sum(epoch["images"] for epoch in epochs)
    if "ours" in names:
        own = [one["ours"] for one in rounds]
        found["ratio"] = statistics.median(
            (a["images"] / a["seconds"]) / rate for a, rate in zip(own, rates, strict=True)
        )
        found["cpu_ratio"] = cpu / sum(one["cpu_seconds"] for one in own)
    found |= {key: contender.start[key] for key in ("first_batch_s", "process_first_batch_s")}
    found["peak_memory_mb"] = contender.peak_memory / 1e6
    found["loader_memory_mb"] = (contender.peak_memory - contender.import_memory) / 1e6
    return {**found, "rates": rates}


def show(rows: list[dict[str, Any]], mode: str, resolution: int) -> None:
    """Print the rows of a mode and a resolution."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=f"{mode}, {resolution} px")
    heads = ("loader", "images/s", "spread", "ratio", "CPU ms", "CPU ratio", "first batch", "memory, MB")
    for head in heads:
        table.add_column(head, justify="left" if head == "loader" else "right", no_wrap=True)
    for found in rows:
        table.add_row(
            found["loader"],
            f"{found['images_per_s']:,.0f}",
            f"{found['images_per_s_min']:,.0f}–{found['images_per_s_max']:,.0f}",
            f"{found['ratio']:.2f}" if "ratio" in found else "",
            f"{found['cpu_ms_per_image']:.3f}",
            f"{found['cpu_ratio']:.2f}" if "ratio" in found else "",
            f"{found['first_batch_s']:.2f} s",
            f"{found['peak_memory_mb']:,.0f} ({found['loader_memory_mb']:,.0f})",
        )
    Console(highlight=False, width=120).print(table, "")


def machine() -> dict[str, Any]:
    """Cores, processor and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cores": usable_cores(),
        "processor": name,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    run_main(main)
