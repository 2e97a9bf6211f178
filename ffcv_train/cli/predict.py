"""The classes of images, by a checkpoint; --help describes every option.

python -m ffcv_train predict --checkpoint runs/my_run/final.pt photographs/ --output predictions.csv
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from ffcv_train.analysis.figures.style import FORMATS as FIGURES
from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.analysis.figures.unsure import draw_unsure
from ffcv_train.cli.arguments import parse_request
from ffcv_train.data.loading.pictures import Picture, cut_pictures, open_pictures
from ffcv_train.data.open import center_crop_of
from ffcv_train.evaluation.predictions import Predictions, check_format, predict_pictures, write_predictions
from ffcv_train.evaluation.run import requested_network
from ffcv_train.evaluation.subject import Request
from ffcv_train.models.class_names import read_names
from ffcv_train.system.distributed import need_one_process, process_group
from ffcv_train.system.errors import UserError, printable
from ffcv_train.system.files import expand_path

DESCRIPTION = """Say what images show: the likeliest classes of each, with their probabilities.

python -m ffcv_train predict --checkpoint runs/my_run/final.pt IMAGE|FOLDER|ZIP|BETON … --output predictions.csv

Images are cut as validation does, at the first of validation.resolution, and the network runs as eval runs it: the same
logits. Folders and archives are searched to their leaves and need no labels. An image that cannot be read is named and
left out, and the exit status is then 1. Other checkpoints than those of this trainer need --model.arch.
"""
_FLAGS = ("-h", "--help", "--calibrated")
_GUESSES = 2  # under an image of the grid


def parse_predict_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments of `predict`; `options.images` are its inputs. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--output", type=expand_path, metavar="FILE", help="table to write: .csv, .jsonl, or .parquet [print it]"
        )
        group.add_argument("--top", type=int, default=5, metavar="K", help="classes per image [5]")
        group.add_argument(
            "--names",
            type=expand_path,
            metavar="FILE",
            help="names of the classes, a line each, or imagenet [the checkpoint's]",
        )
        group.add_argument(
            "--calibrated",
            action="store_true",
            help="with the temperature that eval kept in the checkpoint",
        )
        group.add_argument(
            "--grid", type=expand_path, metavar="FILE.png", help="draw the images that the network is least sure of"
        )
        group.add_argument("--grid-count", type=int, default=24, metavar="N", help="how many of them [24]")
        group.add_argument("--device", metavar="auto|cpu|cuda", help="short for --training.device")

    inputs, words = split_inputs(argv)
    for place, word in enumerate(words):
        if word.split("=")[0] == "--device":
            words[place] = word.replace("--device", "--training.device", 1)
    request = parse_request(words, description=DESCRIPTION, add_options=add_options, needs_data_set=False)
    options = request.options
    options.images = inputs
    if not inputs:
        raise UserError("no images to look at; name files, folders or .zip files of them, or .beton files")
    if options.top < 1:
        raise UserError(f"--top must be at least 1, not {options.top}")
    if options.grid_count < 1:
        raise UserError(f"--grid-count must be at least 1, not {options.grid_count}")
    if request.output is not None:
        check_format(request.output)
    if options.grid and Path(options.grid).suffix.lower().removeprefix(".") not in FIGURES:
        raise UserError(f"--grid {options.grid} must end in .{', .'.join(FIGURES)}")
    return request


def split_inputs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `argv` that name images, and the options with their values; all after `--` names images."""
    inputs: list[str] = []
    options: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            inputs += words
        elif word.startswith("-") and word != "-":
            options.append(word)
            if "=" not in word and word not in _FLAGS:
                options += [value] if (value := next(words, None)) is not None else []
        else:
            inputs.append(word)
    return inputs, options


def shown_names(request: Request, num_classes: int) -> tuple[str, ...]:
    """Of --names, else the checkpoint's, else the labels. Raises `UserError` where --names are not as many."""
    names = read_names(request.options.names)
    if names is None:
        return request.subject.class_names or tuple(map(str, range(num_classes)))
    if len(names.shown) != num_classes:
        raise UserError(
            f"--names {request.options.names} has {len(names.shown)} names, but {request.subject.path} has "
            f"{num_classes} classes; give a name for each"
        )
    return names.shown


def print_predictions(predictions: Predictions, classes: Sequence[str]) -> None:
    """Print a line per image."""
    rows = zip(predictions.names, predictions.labels.tolist(), predictions.probabilities.tolist(), strict=True)
    for name, labels, probabilities in rows:
        ranked = (f"{classes[label]} {share:.1%}" for label, share in zip(labels, probabilities, strict=True))
        print(printable(f"{name}: {', '.join(ranked)}"))


def draw_grid(request: Request, pictures: Sequence[Picture], predictions: Predictions, classes: Sequence[str]) -> None:
    """Draw the images whose likeliest class has the lowest probability, the lowest first."""
    rows = np.argsort(predictions.probabilities[:, 0], kind="stable")[: request.options.grid_count]
    chosen = [pictures[index] for index in predictions.indices[rows]]
    config = request.config
    with closing(cut_pictures(chosen, center_crop_of(config), config.validation.resolution[0], 1)) as cuts:
        images = [cut for cut in cuts if isinstance(cut, np.ndarray)]
    guesses = [
        [
            (classes[label], share)
            for label, share in zip(
                predictions.labels[row, :_GUESSES].tolist(), predictions.probabilities[row].tolist(), strict=False
            )
        ]
        for row in rows
    ]
    if len(images) < len(chosen):
        raise UserError("an image of the grid cannot be read any more; start again")
    save_figure(draw_unsure(images, [Path(picture.name).name for picture in chosen], guesses), request.options.grid)


def main(argv: Sequence[str]) -> None:
    """Parse, predict, write; exit status 1 where images had to be left out."""
    request = parse_predict_request(argv)
    calibrated = request.options.calibrated
    temperature = request.subject.temperature_of(request.weights, "--calibrated") if calibrated else 1.0
    with process_group(request.config.training.device) as process:
        need_one_process(process, "predict")
        pictures = open_pictures(request.options.images)
        network = requested_network(request, process.device)
        classes = shown_names(request, network.num_classes)
        predictions = predict_pictures(network, request.config, pictures, request.options.top, process, temperature)
    if request.output is None:
        print_predictions(predictions, classes)
    else:
        write_predictions(request.output, predictions, classes)
        print(f"predictions of {len(predictions.names):,} images: {request.output}")
    if request.options.grid:
        draw_grid(request, pictures, predictions, classes)
        print(f"the least sure: {request.options.grid}")
    if predictions.failures:
        print(f"{len(predictions.failures)} of {len(pictures)} images could not be read", file=sys.stderr)
        sys.exit(1)
