"""How fast write_dataset.py converts photographs, beside FFCV's own DatasetWriter.

    python -m benchmarks.writer --folder ImageNet/train --workers 2 --json writer.json

Both convert the same class folders (longest side 500 pixels, JPEG quality 90) with as many worker processes, each in
a program of its own, started afresh: ours as write_dataset.py does, the other as FFCV's ImageNet script. In each round
either converts all images, and the first quarter of them, in turn. The rate is that of the other three quarters: their
number by what the conversion of all took longer than that of the quarter (its median over the rounds), so that
imports, starting the workers and finishing the file cancel out. The rate with start-up is that of the whole program on
all images. CPU time, of all processes, is taken in the same way as the rate; where other programs share the machine it
is the steadier figure. Where the folder holds fewer photographs than --images they are repeated, as links. The files
are removed after each run.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.conversion import JPEG_QUALITY, MAX_RESOLUTION, WRITERS
from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.sources.walk import is_image_file
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

MODES = {"jpg": 1.0, "proportion": 0.5}
"""Write modes and their probability of JPEG."""


@dataclass(frozen=True)
class Run:
    """A conversion: images, its wall and CPU time, the wall time of the whole program, in seconds; bytes written."""

    writer: str
    images: int
    seconds: float
    cpu_seconds: float
    program_seconds: float
    size: int


def main() -> None:
    """Parse, measure, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", required=True, type=Path, help="class folders of photographs")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (all cores)")
    parser.add_argument("--modes", default="jpg,proportion", help="jpg, proportion (50%% raw), or both (both)")
    parser.add_argument("--images", type=int, default=4000, help="images per conversion (4000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--scratch", type=Path, help="folder for the files to write (the system's for temporary files)")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"--modes: {unknown[0]!r} is none of {', '.join(MODES)}")
    check_least(arguments, workers=1, rounds=1, images=8)
    check_folders(arguments)

    with tempfile.TemporaryDirectory(prefix="writer-", dir=arguments.scratch) as name:
        scratch = Path(name)
        link_images(arguments.folder, scratch / "images", arguments.images)
        rows = []
        for mode in modes:
            runs = measure(scratch, mode, arguments.images, arguments.workers, arguments.rounds)
            for row in summarise(runs, arguments.images):
                rows.append({"mode": mode, "workers": arguments.workers, **row})
    print(table(rows))
    if arguments.json is not None:
        measured = {
            "rows": rows,
            "settings": {"max_resolution": MAX_RESOLUTION, "jpeg_quality": JPEG_QUALITY, "images": arguments.images},
            "environment": describe_environment(),
        }
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


def link_images(folder: Path, target: Path, count: int) -> None:
    """Class folders in `target` with links to `count` images of `folder`: evenly spaced, or all of them repeated."""
    files = sorted(file for file in folder.glob("*/*") if is_image_file(file))
    if not files:
        raise UserError(f"--folder: {folder} holds no class folders with images")
    for i in range(count):
        file = files[i * len(files) // count if len(files) > count else i % len(files)]
        link = target / file.parent.name / f"{i:07d}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
        file.read_bytes()  # into the page cache


def measure(scratch: Path, mode: str, images: int, workers: int, rounds: int) -> list[Run]:
    """`rounds` times: each writer on the first quarter of the images, then each on all."""
    runs = []
    for number in range(rounds):
        # Whoever is first in one round is second in the next.
        order = list(WRITERS)[:: 1 if number % 2 == 0 else -1]
        for part, writer in itertools.product((images // 4, images), order):
            runs.append(convert(writer, scratch, mode, part, workers))
            print(f"{mode}, round {number + 1}: {writer}, {part} images, {runs[-1].program_seconds:.1f} s", flush=True)
    return runs


def convert(writer: str, scratch: Path, mode: str, images: int, workers: int) -> Run:
    """Convert the first `images` of scratch/images in a process of its own."""
    target = scratch / "out" / "images.beton"
    target.parent.mkdir()
    arguments = [writer, scratch / "images", target, mode, MODES[mode], workers, images]
    command = [sys.executable, "-m", "benchmarks.conversion", *map(str, arguments)]
    os.sync()  # what earlier runs left to the disk
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    program_seconds = time.perf_counter() - start
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{writer} failed: {last_line}")
    if len(open_beton(target)) != images:
        raise UserError(f"{writer} wrote {len(open_beton(target))} of {images} images")
    size = target.stat().st_size
    shutil.rmtree(target.parent)
    return Run(writer, images, **json.loads(done.stdout), program_seconds=program_seconds, size=size)


def summarise(runs: Sequence[Run], images: int) -> list[dict[str, Any]]:
    """A row for each writer: medians over the rounds; `_spread` is the lowest and the highest.

    `speedup` is the ratio of this writer's figure to FFCV's in the same round.
    """
    figures = {writer: _figures([run for run in runs if run.writer == writer], images) for writer in WRITERS}
    rows = []
    for writer, values in figures.items():
        for name in ("images_per_s", "images_per_s_with_startup", "cpu_ms_per_image"):
            pairs = list(zip(values[name], figures["ffcv"][name], strict=True))
            ratios = [stock / ours if name == "cpu_ms_per_image" else ours / stock for ours, stock in pairs]
            values[f"speedup_{name}"] = ratios
        row: dict[str, Any] = {"writer": writer, "rounds": len(values["images_per_s"])}
        row["bytes"] = next(run.size for run in runs if run.writer == writer and run.images == images)
        for name, measured in values.items():
            row[name] = median(measured)
            row[f"{name}_spread"] = [min(measured), max(measured)]
        rows.append(row)
    return rows


def _figures(runs: Sequence[Run], images: int) -> dict[str, list[float]]:
    """By name, a figure for each round."""
    whole, part = ([run for run in runs if (run.images == images) == all_of_them] for all_of_them in (True, False))
    rest = images - part[0].images
    start = median(run.seconds for run in part)
    cpu_start = median(run.cpu_seconds for run in part)
    if min(run.seconds for run in whole) <= start or min(run.cpu_seconds for run in whole) <= cpu_start:
        raise UserError("all images took no longer than a quarter of them; give more with --images")
    rates = [rest / (run.seconds - start) for run in whole]
    return {
        "images_per_s": rates,
        "images_per_s_with_startup": [images / run.program_seconds for run in whole],
        "startup_s": [run.program_seconds - images / rate for run, rate in zip(whole, rates, strict=True)],
        "cpu_ms_per_image": [1000 * (run.cpu_seconds - cpu_start) / rest for run in whole],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `summarise` as text, medians with their spread."""
    columns = {
        "images/s": ("images_per_s", "{:.0f}"),
        "× FFCV": ("speedup_images_per_s", "{:.2f}"),
        "with start-up": ("images_per_s_with_startup", "{:.0f}"),
        "start-up, s": ("startup_s", "{:.1f}"),
        "CPU ms/image": ("cpu_ms_per_image", "{:.2f}"),
        "by CPU × FFCV": ("speedup_cpu_ms_per_image", "{:.2f}"),
    }
    lines = [["mode", "writer", *columns, "MiB"]]
    for row in rows:
        cells = [row["mode"], row["writer"]]
        for name, form in columns.values():
            low, high = row[f"{name}_spread"]
            cells.append(f"{form.format(row[name])} ({form.format(low)}–{form.format(high)})")
        lines.append([*cells, f"{row['bytes'] / 2**20:.0f}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    run_main(main)
