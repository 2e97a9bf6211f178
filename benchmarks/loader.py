"""How fast the loader is, beside FFCV, torchvision, webdataset, Pillow and, where installed, DALI and SPDL.

    python -m benchmarks.loader --folder ImageNet/train --workers 2 --resolutions 160,224 --json loader.json

All read the same photographs (longest side 500 pixels, JPEG quality 90), held by the page cache, and yield uint8
batches of random resized crops with flips. Each contender is a process of its own that stays alive; in each round
every one of them runs one epoch, in turn. An epoch is as many passes over the images as take --seconds. FFCV and the
file readers get JPEGs without restart markers, as their own tools write them; the pixels are the same. With --beton
all read that file as it is. Only ours and FFCV read raw samples, so only these compete where there are any.

images/s: median of the epochs, and their spread. ratio: median over rounds of ours to that one. CPU: milliseconds of
all its processes per image, which other programs on the machine disturb less. others: cores that these took meanwhile,
median of the epochs; where it is not near 0, trust the CPU ratio only. first batch: from the loader's construction,
after imports and with numba's disk cache filled. memory: peak of anonymous and shared memory of all its processes
(Pss_Anon and Pss_Shmem of smaps_rollup; mapped files, that is the page cache, do not count), and in brackets what came
after imports; of a start and an epoch of another process of the same contender, because sampling it costs time.
"""

import argparse
import contextlib
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.loading.contenders import BETON_READERS, CONTENDERS, OURS, Files, available
from benchmarks.loading.files import from_beton, from_folder
from benchmarks.loading.process import Contender
from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.data.format.beton import open_beton
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json
from ffcv_train.system.resources import usable_cores

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MODES = ("jpg", "proportion")
PACKAGES = ("torch", "torchvision", "ffcv", "numba", "webdataset", "pillow", "nvidia-dali-cuda120", "spdl-io")


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
            names = competing(options.loaders, mode)
            batch_size = min(options.batch_size, len(open_beton(files.beton)))
            own = [name for name in names if name in OURS]
            if own and not rows:
                # One start fills numba's disk cache for all modes and resolutions.
                Contender(own[0], files, options.resolutions[0], batch_size, options.workers).close()
            for resolution in options.resolutions:
                rows += measure(names, files, mode, resolution, batch_size, options)
                show(rows[-len(names) :], mode, resolution)
    if options.json is not None:
        write_json(options.json, {"rows": rows, "machine": machine(), "command": shlex.join(sys.argv)})
        print(f"written: {options.json}")


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_of(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="photographs, a folder per class")
    source.add_argument("--beton", type=Path, help="a .beton, used as it is")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="threads or processes [all cores]")
    parser.add_argument("--resolutions", default="160,224", help="sides in pixels, comma-separated [160,224]")
    parser.add_argument("--modes", help="how to store --folder: jpg, proportion (50%% raw) [jpg,proportion]")
    parser.add_argument("--loaders", help=f"comma-separated, of: {', '.join(CONTENDERS)} [all that are installed]")
    parser.add_argument("--epochs", type=int, default=5, help="measured epochs [5]")
    parser.add_argument("--seconds", type=float, default=3.0, help="least duration of an epoch, in whole passes [3]")
    parser.add_argument("--images", type=int, help="photographs of --folder in a pass [2000]")
    parser.add_argument("--batch-size", type=int, default=250, help="at most all images [250]")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.beton is not None:
        for name in ("modes", "images"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for --folder; --beton is read as it is")
    options.images = 2000 if options.images is None else options.images
    check_least(options, workers=1, epochs=1, images=1, batch_size=1)
    if not 0 < options.seconds < 3600:
        raise UserError(f"--seconds must be above 0 and below 3600, not {options.seconds:g}")
    try:
        options.resolutions = [int(word) for word in options.resolutions.split(",")]
    except ValueError:
        raise UserError(f"--resolutions takes sides such as 160,224, not {options.resolutions}") from None
    if min(options.resolutions) < 1:
        raise UserError("--resolutions: a side has at least one pixel")
    options.modes = _chosen("modes", options.modes, MODES, MODES) if options.beton is None else [""]
    # A .beton is read as it is: there is no second file without restart markers or with a level.
    known = [name for name in CONTENDERS if name not in OURS[1:] or options.beton is None]
    options.loaders = _chosen("loaders", options.loaders, known, [name for name in known if name in available()])
    for name in options.loaders:
        if name not in available():
            raise UserError(f"--loaders: the package of {name!r} is not installed")
    for mode in options.modes if options.beton is None else []:
        competing(options.loaders, mode)
    check_folders(options)
    return options


def _chosen(option: str, given: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The names of a comma-separated option; `UserError` for an unknown or a repeated one."""
    names = list(default) if given is None else [word.strip() for word in given.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--{option}: there is no {option.removesuffix('s')} {name!r}, only {', '.join(known)}")
        if names.count(name) > 1:
            raise UserError(f"--{option} names {name!r} twice")
    return names


def competing(loaders: Sequence[str], mode: str) -> list[str]:
    """Those of `loaders` that can read the mode; `UserError` where there is none."""
    names = [name for name in loaders if mode == "jpg" or name in BETON_READERS]
    if not names:
        raise UserError(f"--loaders: {', '.join(loaders)} cannot read raw samples; add ours or ffcv, or leave them out")
    return names


def measure(
    names: list[str], files: Files, mode: str, resolution: int, batch_size: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row per contender."""
    with contextlib.ExitStack() as stack:
        contenders, memory = [], {}
        for name in names:
            order = (name, files, resolution, batch_size, options.workers)
            # Before the timed one, so that this one finds all it reads in the page cache.
            memory[name] = memory_mb(Contender(*order, watched=True))
            contender = Contender(*order)
            stack.callback(contender.close)
            contenders.append(contender)
        for contender in contenders:
            contender.last(options.seconds)
        rounds = []
        for number in range(options.epochs):
            # Whoever is first in one round is last in the next.
            turn = contenders if number % 2 == 0 else contenders[::-1]
            rounds.append({contender.name: contender.epoch() for contender in turn})
        found = []
        for contender in contenders:
            one: dict[str, Any] = {"loader": contender.name, "mode": mode, "resolution": resolution}
            one |= {"workers": options.workers, "batch_size": batch_size}
            found.append({**one, **row(contender, rounds, names), **memory[contender.name]})
        return found


def memory_mb(watched: Contender) -> dict[str, float]:
    """The peak of a start and an epoch, whole and without what the imports hold; ends the contender."""
    with contextlib.closing(watched):
        watched.epoch()
        peak = watched.peak_memory
        return {"peak_memory_mb": peak / 1e6, "loader_memory_mb": (peak - watched.import_memory) / 1e6}


def row(contender: Contender, rounds: list[dict[str, dict[str, float]]], names: list[str]) -> dict[str, Any]:
    """What a contender's epochs say."""
    epochs = [one[contender.name] for one in rounds]
    rates = [epoch["images"] / epoch["seconds"] for epoch in epochs]
    cpu = sum(epoch["cpu_seconds"] for epoch in epochs) / sum(epoch["images"] for epoch in epochs)
    found: dict[str, Any] = {"images": epochs[0]["images"], "passes": epochs[0]["passes"]}
    found |= {"images_per_s": statistics.median(rates), "images_per_s_min": min(rates), "images_per_s_max": max(rates)}
    found["cpu_ms_per_image"] = 1e3 * cpu
    found["other_cores"] = statistics.median(epoch["other_cores"] for epoch in epochs)
    if "ours" in names:
        own = [one["ours"] for one in rounds]
        found["ratio"] = statistics.median(
            (a["images"] / a["seconds"]) / rate for a, rate in zip(own, rates, strict=True)
        )
        found["cpu_ratio"] = cpu / (sum(one["cpu_seconds"] for one in own) / sum(one["images"] for one in own))
    return {**found, **contender.start, "rates": rates}


def show(rows: list[dict[str, Any]], mode: str, resolution: int) -> None:
    """Print the rows of a mode and a resolution."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=f"{mode}, {resolution} px")
    heads = ("loader", "images/s", "spread", "ratio", "CPU ms", "CPU ratio", "others", "first batch", "memory, MB")
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
            f"{found['other_cores']:.2f}",
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
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    run_main(main)
