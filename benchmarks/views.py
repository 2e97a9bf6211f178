"""CPU time of several views of each sample: of one decode, beside a decode for each.

    python -m benchmarks.views --folder ImageNet/train --json views.json

Photographs are written as in `benchmarks.loader` (longest side 500 pixels, JPEG quality 90), tiled and not, with a
smaller level too where --level says so. What is compared: a loader with `views`, and a loader of one view for each
view, of the same resolution and crop, one after the other. In each round each has its turn, and whoever is first in
one is last in the next. Times are the process's own CPU time per sample, all views of it together, in milliseconds:
median over rounds [quartiles], and the median over rounds of the ratio.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.loader import machine
from benchmarks.loading.files import JPEG_QUALITY, MAX_RESOLUTION, link_photographs
from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.system.files import write_json

View = tuple[int, RandomResizedCrop]
PLAIN, GLOBAL, LOCAL = RandomResizedCrop(), RandomResizedCrop((0.14, 1.0)), RandomResizedCrop((0.05, 0.14))
CASES: dict[str, list[View]] = {
    "2 × 160": [(160, PLAIN)] * 2,
    "2 × 224": [(224, PLAIN)] * 2,
    "2 × 224 + 6 × 96": [(224, GLOBAL)] * 2 + [(96, LOCAL)] * 6,
}


def main() -> None:
    """Parse, prepare, measure, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="photographs, a folder per class")
    parser.add_argument("--images", type=int, default=500, help="photographs of it [500]")
    parser.add_argument("--rounds", type=int, default=5, help="measured epochs of each [5]")
    parser.add_argument("--level", type=float, default=0.0, help="sides of a smaller level, 0 for none [0]")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    check_least(options, images=1, rounds=1)
    check_folders(options)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="views-benchmark-", dir=options.scratch) as scratch:
        for tiles in (True, False):
            beton = written(options, Path(scratch), tiles)
            for case, views in CASES.items():
                rows.append({"views": case, "tiles": tiles, **measured(beton, views, options.images, options.rounds)})
                print(line(rows[-1]), flush=True)
    if options.json is not None:
        write_json(options.json, {"rows": rows, "machine": machine(), "command": shlex.join(sys.argv)})
        print(f"written: {options.json}")


def written(options: argparse.Namespace, scratch: Path, tiles: bool) -> Path:
    """A .beton of the photographs."""
    links, path = scratch / "links", scratch / f"{'tiled' if tiles else 'plain'}.beton"
    if not links.exists():
        link_photographs(options.folder, links, options.images)
    convert(
        WriteConfig(
            data_dir=str(links),
            write_path=str(path),
            write_mode="jpg",
            max_resolution=MAX_RESOLUTION,
            jpeg_quality=JPEG_QUALITY,
            tiles=tiles,
            level=options.level,
            num_workers=1,
        )
    )
    return path


def measured(path: Path, views: Sequence[View], images: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds per sample of both ways, and how many times as much the decodes apart take."""
    together = [opened(path, images, views=list(views))]
    apart = [opened(path, images, crop=crop, resolution=side, seed=seed) for seed, (side, crop) in enumerate(views)]
    ways = {"together": together, "apart": apart}
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for number in range(rounds + 1):
        for way in sorted(ways, reverse=number % 2 == 0):
            start = time.process_time()
            for loader in ways[way]:
                loader.set_epoch(number)
                for _ in loader.epoch():
                    pass
            if number:  # the first fills caches
                times[way].append(1e3 * (time.process_time() - start) / images)
    for loader in [*together, *apart]:
        loader.close()
    return {**times, "ratio": median(b / a for a, b in zip(times["together"], times["apart"], strict=True))}


def opened(path: Path, images: int, **what: Any) -> BetonLoader:
    """A loader of one thread; an epoch of it is all images in batches of 50, or in one."""
    size = 50 if images % 50 == 0 else images
    what = {"crop": None, "resolution": None, **what}
    return BetonLoader(open_beton(path), size, device=torch.device("cpu"), order="random", num_workers=1, **what)


def line(row: dict[str, Any]) -> str:
    """A row as text."""

    def spread(values: list[float]) -> str:
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return f"{median(values):.2f} [{low:.2f}–{high:.2f}]"

    tiles = "tiles" if row["tiles"] else "no tiles"
    ways = f"one decode {spread(row['together'])} ms, apart {spread(row['apart'])} ms"
    return f"{row['views']}, {tiles}: {ways}, ratio {row['ratio']:.2f}"


if __name__ == "__main__":
    run_main(main)
