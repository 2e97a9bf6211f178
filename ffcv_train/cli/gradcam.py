"""Draw Grad-CAM of one or more checkpoints on a few images; --help describes every option.

ffcv-train gradcam --checkpoint maxsup.pt ls.pt --labels MaxSup LS --images photographs --output gradcam.png
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ffcv_train.analysis.figures.gradcam import draw_gradcam
from ffcv_train.analysis.figures.inputs import default_labels
from ffcv_train.analysis.figures.style import save_both
from ffcv_train.cli.arguments import add_class_names_option, parse_request
from ffcv_train.evaluation.gradcam import GradcamRequest, run_gradcam
from ffcv_train.evaluation.gradcam_images import MAX_IMAGES
from ffcv_train.evaluation.subject import Subject, read_subject
from ffcv_train.metrics.maps import Row
from ffcv_train.models.class_names import read_names
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json

MAX_CHECKPOINTS = 8
_OF_A_RUN = ("last", "best", "final")
DESCRIPTION = f"""Draw Grad-CAM, where the evidence for a class lies: a row per checkpoint, a column per image.

ffcv-train gradcam --checkpoint maxsup.pt ls.pt --labels MaxSup LS --images photographs --output gradcam.png

--images is a folder of images (folders in it give their images' class by name), a .beton file or a .zip with its map;
at most {MAX_IMAGES} images. Each checkpoint runs with its own configuration: images are cut as in evaluation, at its
resolution, the first of validation.resolution. Maps are of a ConvNet's last features before pooling, of a transformer's
last norm whose patch tokens reach the logits; each is scaled to its own largest value. The network runs in float32
unless --training.amp says otherwise. Other checkpoints than ffcv-train train's need --model.arch. Writes the figure as
.png and .svg, and .json.
"""


def parse_gradcam_request(argv: Sequence[str]) -> GradcamRequest:
    """Resolve the arguments of ffcv-train gradcam. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--labels", nargs="+", metavar="TEXT", help="a name per checkpoint [the run's or file's name]"
        )
        group.add_argument(
            "--images",
            type=expand_path,
            metavar="PATH",
            help="folder of image files, .beton file, or .zip with its map",
        )
        group.add_argument("--output", dest="figure", type=expand_path, metavar="FILE.png", help="figure to write")
        group.add_argument(
            "--class",
            dest="class_",
            metavar="CLASS",
            help="class that is explained: true, predicted, a name or a label [true where known, else predicted]",
        )
        group.add_argument("--count", type=int, metavar="N", help="draw N of the images [folder: all; else 6]")
        group.add_argument("--seed", type=int, default=0, metavar="N", help="which images --count draws [0]")
        group.add_argument("--indices", nargs="+", type=int, metavar="I", help="samples of the .beton or .zip, instead")
        group.add_argument(
            "--names",
            type=expand_path,
            metavar="FILE",
            help="class names, a line each in label order; imagenet: those of ImageNet-1k",
        )
        add_class_names_option(group)

    several = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    several.add_argument("--checkpoint", nargs="+", type=expand_path, default=[""])
    chosen, rest = several.parse_known_args(list(argv))
    paths, read = chosen.checkpoint, functools.cache(read_subject)
    requests = tuple(
        parse_request(
            ["--checkpoint", path, *arguments],
            description=DESCRIPTION,
            add_options=add_options,
            defaults={"training.amp": "off"},
            needs_data_set=False,
            read=read,
        )
        for path, arguments in zip(paths, _arguments_of_each(paths, rest, read), strict=True)
    )
    options = requests[0].options
    if len(paths) > MAX_CHECKPOINTS:
        raise UserError(f"a figure has at most {MAX_CHECKPOINTS} rows, not {len(paths)}; give fewer --checkpoint files")
    labels = tuple(options.labels or _default_labels(paths))
    if len(labels) != len(paths):
        raise UserError(f"{len(labels)} --labels do not name {len(paths)} --checkpoint files; give one per file")
    _check_options(options)
    return GradcamRequest(requests, labels, Path(options.figure), options, read_names(options.names))


def record(request: GradcamRequest, rows: Sequence[Row]) -> dict[str, Any]:
    """What the .json beside the figure holds; maps are left out."""
    numbers = ("predicted", "probability", "explained", "explained_probability", "true", "correct")
    return {
        "format": 1,
        "rows": [
            {
                "label": row.label,
                "checkpoint": one.subject.path,
                "layer": row.layer,
                "grid": row.grid,
                "images": [{key: getattr(cell, key) for key in numbers} for cell in row.cells],
            }
            for one, row in zip(request.requests, rows, strict=True)
        ],
    }


def _arguments_of_each(paths: Sequence[str], rest: Sequence[str], read: Callable[[str], Subject]) -> list[list[str]]:
    """`rest` for each checkpoint; beside foreign ones, which need it, ours do without --model.arch: they know it."""
    without, skip = [], False
    for word in rest:
        if not skip and not word.startswith("--model.arch="):
            skip = word == "--model.arch"
            without += [] if skip else [word]
        else:
            skip = False
    if len(paths) == 1 or without == list(rest):
        return [list(rest)] * len(paths)
    ours = [read(path).ours for path in paths]
    return [without if own and not all(ours) else list(rest) for own in ours]


def _default_labels(paths: Sequence[str]) -> list[str]:
    """The runs' names where the checkpoints are runs' own, else the files'."""
    runs = [Path(path).resolve().parent.name if Path(path).stem in _OF_A_RUN else Path(path).stem for path in paths]
    return runs if len(set(runs)) == len(runs) else default_labels(paths)


def _check_options(options: SimpleNamespace) -> None:
    if not options.images:
        raise UserError("no images to explain; give a folder, a .beton file or a .zip with --images PATH")
    if not options.figure:
        raise UserError("nowhere to write the figure to; give --output FILE.png")
    if Path(options.figure).suffix.lower() != ".png":
        raise UserError(f"--output {options.figure} must end in .png; the .svg is written beside it")
    if options.count is not None and options.indices is not None:
        raise UserError("--count and --indices both say which images; give one of them")
    if options.count is not None and not 1 <= options.count <= MAX_IMAGES:
        raise UserError(f"--count must be from 1 to {MAX_IMAGES}, not {options.count}")
    if options.seed < 0:
        raise UserError(f"--seed must be at least 0, not {options.seed}")


def main(argv: Sequence[str]) -> None:
    """Parse, explain, draw."""
    request = parse_gradcam_request(argv)
    with process_group(request.config.training.device) as process:
        rows = run_gradcam(request, process)
    save_both(draw_gradcam(rows), request.output.parent, request.output.stem)
    write_json(request.output.with_suffix(".json"), record(request, rows))
    for row in rows:
        print(f"{row.label}: maps of {row.layer}, {row.grid[0]} × {row.grid[1]}")
    print(f"figure: {request.output}")
