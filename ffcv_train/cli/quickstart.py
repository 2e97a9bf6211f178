"""The whole job on data that comes with a package: `make quickstart`.

scikit-learn's handwritten digits become JPEG folders, the folders .beton files, these a trained checkpoint, the
checkpoint metrics and a figure. Each step is a command that users run themselves; its line is printed.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ffcv_train.system.errors import UserError

DESCRIPTION = """The whole job on scikit-learn's handwritten digits, in minutes: images, .beton files, a trained and
evaluated network, a figure. Takes no options; writes into quickstart_run/ here, in place of an earlier one's."""

OUTPUT = Path("quickstart_run")
SIDE = 32
MIN_TOP_1 = 0.97


def write_images(folder: Path) -> dict[str, int]:
    """Write the digits to folder/{train,val}/<digit>/NNNN.jpg; returns the number of images per split.

    1797 greyscale images of 8 × 8 pixels with values 0 to 16 are enlarged to 32 × 32 (bicubic). A fifth, the same
    share of every digit, is held out as `val`; the split is the same on every call.
    """
    digits = load_digits()
    indices = np.arange(len(digits.target))
    train, val = train_test_split(indices, test_size=0.2, stratify=digits.target, random_state=0)
    for split, members in (("train", train), ("val", val)):
        for index in members:
            pixels = (digits.images[index] * (255 / 16)).round().astype(np.uint8)
            path = folder / split / str(digits.target[index]) / f"{index:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(path, quality=95)
    return {"train": len(train), "val": len(val)}


def commands(output: Path) -> list[tuple[str, list[str]]]:
    """The steps after the images are written, as (title, command and its arguments)."""
    beton = {split: f"{output}/{split}.beton" for split in ("train", "val")}
    write = [
        (
            f"Convert {split} images",
            [
                "write",
                "--cfg.dataset=imagenet",
                f"--cfg.split={split}",
                f"--cfg.data_dir={output}/images/{split}",
                f"--cfg.write_path={beton[split]}",
                "--cfg.write_mode=jpg",
                "--cfg.jpeg_quality=95",
            ],
        )
        for split in ("train", "val")
    ]
    train = [
        "train",
        f"--config-file={output}/quickstart.yaml",
        f"--data.train_dataset={beton['train']}",
        f"--data.val_dataset={beton['val']}",
        f"--logging.folder={output}",
        "--logging.run=run",
    ]
    evaluate = [
        "eval",
        f"--checkpoint={output}/run/final.pt",
        f"--data.val_dataset={beton['val']}",
        f"--output={output}/metrics.json",
    ]
    figure = ["reliability", f"--metrics={output}/metrics.json", f"--output={output}/reliability.png"]
    return [
        *write,
        ("Train with MaxSup", train),
        ("Evaluate", evaluate),
        ("Draw", figure),
    ]


def run(title: str, arguments: list[str], console: Console) -> float:
    """Run a command; returns its wall time in seconds. Raises `UserError` if it fails."""
    console.rule(title, align="left")
    # The network is so small that on a busy machine two threads wait for each other many times longer than they work.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    threads = environment["OMP_NUM_THREADS"]
    line = f"OMP_NUM_THREADS={threads} python -m ffcv_train {shlex.join(arguments)}"
    console.print(line, style="dim", soft_wrap=True, markup=False)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, "-m", "ffcv_train", *arguments], env=environment).returncode
    if status:
        raise UserError(f"the quickstart's step {title!r} failed with exit status {status}; the reason stands above")
    return time.perf_counter() - start


def summarise(metrics_file: Path, seconds: dict[str, float], console: Console) -> float:
    """Print metrics, where outputs lie and what comes next; returns top-1 in [0, 1]."""
    result = json.loads(metrics_file.read_text())["results"][0]
    metrics = Table(title=f"Held-out digits: {result['count']} images", title_justify="left")
    for name in ("view", "top-1 %", "top-5 %", "NLL", "calibration error"):
        metrics.add_column(name, justify="left" if name == "view" else "right")
    metrics.add_row(
        "single",
        f"{100 * result['top_1']:.2f}",
        f"{100 * result['top_5']:.2f}",
        f"{result['nll']:.4f}",
        f"{result['ece']:.4f}",
    )
    console.print(metrics)
    console.print("\nOutputs")
    for path, meaning in OUTPUTS.items():
        console.print(f"  {f'{OUTPUT}/{path}':<32}{meaning}", soft_wrap=True)
    console.print(
        "\nSeconds: " + ", ".join(f"{title.lower()} {value:.0f}" for title, value in seconds.items()), soft_wrap=True
    )
    console.print(NEXT, markup=False, soft_wrap=True)
    return float(result["top_1"])


OUTPUTS = {
    "images/": "the digits as JPEG files, a folder per class",
    "*.beton": "the data sets; class names and settings lie beside them in *.beton.json",
    "run/final.pt": "the checkpoint, with best.pt and last.pt beside it",
    "run/params.json": "the resolved options, versions and command",
    "run/log.jsonl": "a line per epoch; TensorBoard events lie beside it",
    "metrics.json": "top-1, top-5, NLL, calibration",
    "reliability.png": "the reliability diagram",
}

NEXT = """
Next, ImageNet, in the project's folder, whose rn50_configs/ are the recipes (D holds train/ and val/ with a folder per
class; the README walks through it; where make set it up, source .venv/bin/activate comes first):
  for split in train val; do
    ffcv-train write --cfg.dataset=imagenet --cfg.split=$split --cfg.data_dir=D --cfg.write_path=$split.beton \\
      --cfg.max_resolution=500 --cfg.write_mode=jpg --cfg.jpeg_quality=90
  done
  torchrun --nproc_per_node=8 -m ffcv_train train --config-file rn50_configs/rn50_16_epochs.yaml \\
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs"""


def main(argv: Sequence[str]) -> None:
    """Run every step in a fresh quickstart_run/; exit status 2 where one fails or accuracy falls short."""
    argparse.ArgumentParser(prog="ffcv-train quickstart", description=DESCRIPTION).parse_args(list(argv))
    console = Console(highlight=False)
    start = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    counts = write_images(OUTPUT / "images")
    recipe = resources.files("ffcv_train.cli") / "quickstart.yaml"
    (OUTPUT / "quickstart.yaml").write_text(recipe.read_text())
    console.print(f"{counts['train']} training and {counts['val']} held-out images of digits in {OUTPUT}/images")
    seconds = {title: run(title, arguments, console) for title, arguments in commands(OUTPUT)}
    console.rule(f"Done in {time.perf_counter() - start:.0f} s", align="left")
    top_1 = summarise(OUTPUT / "metrics.json", seconds, console)
    if top_1 < MIN_TOP_1:
        raise UserError(f"top-1 is {top_1:.2%}, but this recipe should reach {MIN_TOP_1:.0%}; something is broken here")
