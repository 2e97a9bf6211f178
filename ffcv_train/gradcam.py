"""Grad-CAM (Selvaraju et al., arXiv:1610.02391) of checkpoints on a few images: what viz/gradcam.py does."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam  # type: ignore[import-untyped]
from torch import Tensor, nn

from ffcv_train.analysis.gradcam_figure import Cell, Row
from ffcv_train.analysis.inputs import default_labels
from ffcv_train.config import RunConfig
from ffcv_train.distributed import Process
from ffcv_train.errors import UserError
from ffcv_train.evaluation_request import Request, add_class_names_option, parse_request, read_subject
from ffcv_train.evaluation_run import Network, load_network
from ffcv_train.evaluator import evaluation_mode
from ffcv_train.gradcam_images import MAX_IMAGES, Images, open_images
from ffcv_train.models.class_names import ClassNames, read_names
from ffcv_train.models.feature_map import FeatureMap, need_feature_map

MAX_CHECKPOINTS = 8
_OF_A_RUN = ("last", "best", "final")
DESCRIPTION = f"""Draw Grad-CAM, where the evidence for a class lies: a row per checkpoint, a column per image.

python viz/gradcam.py --checkpoint maxsup.pt ls.pt --labels MaxSup LS --images photographs --output gradcam.png

--images is a folder of images (folders in it give their images' class by name), a .beton file or a .zip with its map;
at most {MAX_IMAGES} images. Each checkpoint runs with its own configuration: images are cut as eval.py does at its
resolution, the first of validation.resolution. Maps are of a ConvNet's last features before pooling, of a transformer's
last norm whose patch tokens reach the logits; each is scaled to its own largest value. The network runs in float32
unless --training.amp says otherwise. Other checkpoints than train_imagenet.py's need --model.arch. Writes the figure as
.png and .svg, and .json.
"""


@dataclass(frozen=True)
class GradcamRequest:
    """A resolved command line of viz/gradcam.py."""

    requests: tuple[Request, ...]
    """A checkpoint each"""
    labels: tuple[str, ...]
    output: Path
    """The figure, ending in .png"""
    options: argparse.Namespace
    names: ClassNames | None
    """From --names"""

    @property
    def config(self) -> RunConfig:
        return self.requests[0].config


def parse_gradcam_request(argv: Sequence[str]) -> GradcamRequest:
    """Resolve the arguments of viz/gradcam.py. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--labels", nargs="+", metavar="TEXT", help="a name per checkpoint [the run's or file's name]"
        )
        group.add_argument("--images", metavar="PATH", help="folder of image files, .beton file, or .zip with its map")
        group.add_argument("--output", dest="figure", metavar="FILE.png", help="figure to write")
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
            "--names", metavar="FILE", help="class names, a line each in label order; imagenet: those of ImageNet-1k"
        )
        add_class_names_option(group)

    several = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    several.add_argument("--checkpoint", nargs="+", default=[""])
    chosen, rest = several.parse_known_args(list(argv))
    paths = chosen.checkpoint
    requests = tuple(
        parse_request(
            ["--checkpoint", path, *arguments],
            description=DESCRIPTION,
            add_options=add_options,
            defaults={"training.amp": "off"},
            needs_data_set=False,
        )
        for path, arguments in zip(paths, _arguments_of_each(paths, rest), strict=True)
    )
    options = requests[0].options
    if len(paths) > MAX_CHECKPOINTS:
        raise UserError(f"a figure has at most {MAX_CHECKPOINTS} rows, not {len(paths)}; give fewer --checkpoint files")
    labels = tuple(options.labels or _default_labels(paths))
    if len(labels) != len(paths):
        raise UserError(f"{len(labels)} --labels do not name {len(paths)} --checkpoint files; give one per file")
    _check_options(options)
    return GradcamRequest(requests, labels, Path(options.figure), options, read_names(options.names))


def run_gradcam(request: GradcamRequest, process: Process) -> list[Row]:
    """A row per checkpoint, a cell per image. Raises `UserError`, for what the checkpoints are before work starts."""
    if process.world_size > 1:
        raise UserError("viz/gradcam.py runs in one process; start it without torchrun")
    options = request.options
    images = open_images(options.images, count=options.count, seed=options.seed, indices=options.indices)
    if request.output.resolve() in (path.resolve() for path in images.files):
        raise UserError(f"--output {request.output} would replace an image that is read; name another file")
    networks, layers = [], []
    for one in request.requests:
        network = load_network(one, process.device, images.data_set)
        networks.append(network)
        layers.append(need_feature_map(network.model, one.config.validation.resolution[0], one.config.model.arch))
    names = _class_names(request, networks, images)
    true = images.labels(names)
    wish = _wish(options.class_, names, networks[0].num_classes, any(label is not None for label in true))
    rows = []
    for one, label, network, layer in zip(request.requests, request.labels, networks, layers, strict=True):
        pixels = images.read(one.config, process)
        rows.append(Row(label, layer.name, layer.grid, cells(network, layer, pixels, true, wish, names, images.texts)))
    return rows


def cells(
    network: Network,
    layer: FeatureMap,
    pixels: Tensor,
    true: Sequence[int | None],
    wish: str | int,
    names: ClassNames | None,
    texts: Sequence[str],
) -> list[Cell]:
    """A cell for each of `pixels`, uint8 [B, 3, R, R] on the network's device.

    `true` are the labels where they are known, `texts` what is known of the images besides; `wish` is "true"
    (predicted where it is not known), "predicted" or a label.
    """
    logits, maps, explained = gradcam(network, layer, pixels, true, wish)
    probabilities = torch.softmax(logits.double(), dim=1)
    predicted = logits.argmax(dim=1).tolist()

    def text(label: int) -> str:
        return f"class {label}" if names is None else names.shown[label]

    return [
        Cell(
            image=pixels[i].permute(1, 2, 0).cpu().numpy(),
            heat=maps[i].cpu().numpy(),
            predicted=text(predicted[i]),
            probability=float(probabilities[i, predicted[i]]),
            explained=text(explained[i]),
            explained_probability=float(probabilities[i, explained[i]]),
            true=texts[i] if true[i] is None else text(int(true[i] or 0)),
            correct=None if true[i] is None else predicted[i] == true[i],
        )
        for i in range(len(pixels))
    ]


def gradcam(
    network: Network, layer: FeatureMap, pixels: Tensor, true: Sequence[int | None], wish: str | int
) -> tuple[Tensor, Tensor, list[int]]:
    """(logits float32 [B, K], maps float32 [B, R, R] at least 0, labels explained) of uint8 `pixels` [B, 3, R, R].

    A map is relu(Σ_k mean_ij(∂logit / ∂A_k) A_k), A_k channel k of `layer`, made as large as the images bilinearly.
    """
    inputs = network.normalise(pixels)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=network.amp_dtype, enabled=network.amp_dtype is not None):
            return network.model(x).float()

    with evaluation_mode(network.model):
        with torch.no_grad():
            logits = forward(inputs)
        predicted = logits.argmax(dim=1).tolist()
        if isinstance(wish, int):
            explained = [wish] * len(predicted)
        elif wish == "predicted":
            explained = predicted
        else:
            explained = [guess if label is None else label for label, guess in zip(true, predicted, strict=True)]
        with layer.probe() as probe:
            method = LayerGradCam(_Function(forward), probe)
            found: Any = method.attribute(inputs, torch.tensor(explained, device=inputs.device), relu_attributions=True)
    maps = LayerAttribution.interpolate(found.detach().float(), tuple(pixels.shape[2:]), "bilinear")
    return logits, maps[:, 0], explained


class _Function(nn.Module):
    """A function as the module that captum wants."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


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


def _arguments_of_each(paths: Sequence[str], rest: Sequence[str]) -> list[list[str]]:
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
    ours = [read_subject(path).ours for path in paths]
    return [without if own and not all(ours) else list(rest) for own in ours]


def _default_labels(paths: Sequence[str]) -> list[str]:
    """The runs' names where the checkpoints are runs' own, else the files'."""
    runs = [Path(path).resolve().parent.name if Path(path).stem in _OF_A_RUN else Path(path).stem for path in paths]
    return runs if len(set(runs)) == len(runs) else default_labels(paths)


def _check_options(options: argparse.Namespace) -> None:
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


def _class_names(request: GradcamRequest, networks: Sequence[Network], images: Images) -> ClassNames | None:
    """The names of the classes, which all checkpoints must share. Raises `UserError`."""
    first, counts = request.requests[0].subject.path, [network.num_classes for network in networks]
    for one, count in zip(request.requests[1:], counts[1:], strict=True):
        if count != counts[0]:
            raise UserError(
                f"{first} has {counts[0]} classes, {one.subject.path} has {count}; give checkpoints of the same classes"
            )
    if request.names is not None:
        if len(request.names.shown) != counts[0]:
            raise UserError(
                f"--names {request.options.names} has {len(request.names.shown)} names, {first} has {counts[0]} classes"
                "; give the names of the model's classes"
            )
        return request.names
    known = [(one.subject.path, one.subject.class_names) for one in request.requests if one.subject.class_names]
    for path, names in known[1:]:
        if names != known[0][1]:
            raise UserError(
                f"{known[0][0]} and {path} name their classes differently; give checkpoints of the same classes"
            )
    found = known[0][1] if known else images.class_names
    return ClassNames(found, found) if found is not None and len(found) == counts[0] else None


def _wish(text: str | None, names: ClassNames | None, count: int, any_true: bool) -> str | int:
    if text is None:
        return "true"
    if text == "predicted":
        return text
    if text == "true":
        if not any_true:
            raise UserError("--class true: the images do not say their class; put them into folders named by class")
        return text
    label = None if names is None else names.find(text)
    if label is None and text.isdecimal() and int(text) < count:
        label = int(text)
    if label is None:
        some = "" if names is None else f" or a name such as {', '.join(names.shown[:5])}"
        raise UserError(f"--class {text} is no class of the model; give true, predicted, 0 to {count - 1}{some}")
    return label
