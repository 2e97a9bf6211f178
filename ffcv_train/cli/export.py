"""Write a checkpoint's network for other programs; --help describes every option.

python -m ffcv_train export --checkpoint runs/my_run/final.pt --format onnx --output network.onnx
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ffcv_train.cli.arguments import parse_request
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.kernels.crops import crop_parameters
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.data.loading.pictures import cut_pictures, open_pictures
from ffcv_train.data.open import center_crop_of
from ffcv_train.evaluation.classifier import Classifier
from ffcv_train.evaluation.run import requested_network
from ffcv_train.evaluation.subject import Request
from ffcv_train.publish.description import Description, describe
from ffcv_train.publish.export import Check, check_output, export
from ffcv_train.publish.formats import FORMATS
from ffcv_train.system.distributed import need_one_process, process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

DESCRIPTION = """Write a checkpoint's network in another program's format, and compare what that makes of images.

python -m ffcv_train export --checkpoint runs/my_run/final.pt --format onnx --output network.onnx

Formats: onnx; torch, torch.export's program (.pt2), which needs no code of ours; timm, a folder for
timm.create_model("local-dir:FOLDER", pretrained=True); torchvision, a state dict (.pth), with a .json beside it;
safetensors. Each holds the preprocessing and the class names, takes batches of any size, and has averaged weights where
the checkpoint has them. What was written is read by its own library, and is compared with ours on images of the
validation set, where that is still there, or else on two photographs that come with scikit-learn.
"""
_CHECKED = 16
EXPORT_DEFAULTS = {"training.amp": "off", "training.device": "cpu", "model.channels_last": False}
"""Networks are exported from the CPU, in float32"""


class Exportable(NamedTuple):
    """A network on its way out, and the images that what is written is compared on."""

    classifier: Classifier
    description: Description
    images: Tensor
    """uint8 [B, 3, R, R]"""
    source: str
    """Whose images they are"""


def parse_export_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments of `export`. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--format", choices=tuple(FORMATS), help="what to write")
        group.add_argument(
            "--output", dest="target", type=expand_path, metavar="PATH", help="file to write; for timm a new folder"
        )
        add_images_option(group)

    request = parse_request(
        argv,
        description=DESCRIPTION,
        add_options=add_options,
        defaults=EXPORT_DEFAULTS,
        needs_data_set=False,
    )
    options = request.options
    if options.format is None:
        raise UserError(f"no format to write; give it with --format {'|'.join(FORMATS)}")
    if options.target is None:
        raise UserError("nowhere to write to; give a path with --output PATH")
    check_output(options.format, Path(options.target))
    return request


def add_images_option(group: argparse._ArgumentGroup) -> None:
    """`--images`, for the commands that compare what they write."""
    group.add_argument(
        "--images", type=expand_path, metavar="PATH", help="compare on the first images of this file, folder or zip"
    )


def open_exportable(request: Request, command: str) -> Exportable:
    """What `request` names, on the CPU. Raises `UserError`, under torchrun too."""
    with process_group("cpu") as process:
        need_one_process(process, command)
        network = requested_network(request, process.device)
    classifier = Classifier(network, request.config, request.subject, process.device, request.weights)
    images, source = real_images(request.config, request.options.images)
    return Exportable(classifier, describe(classifier), images, source)


def real_images(config: RunConfig, wish: str | None) -> tuple[Tensor, str]:
    """uint8 [B, 3, R, R], cut as validation does: of `wish`, the validation set or scikit-learn; and whose they are.

    Raises `UserError` where `wish` holds none.
    """
    crop, side = center_crop_of(config), config.validation.resolution[0]
    source = wish or (config.data.val_dataset if Path(config.data.val_dataset or ".").exists() else "")
    if source and (wish or config.data.val_dataset):
        pictures = open_pictures([source])[:_CHECKED]
        with closing(cut_pictures(pictures, crop, side, 1)) as cuts:
            pixels = [cut for cut in cuts if isinstance(cut, np.ndarray)]
        if not pixels:
            raise UserError(
                f"none of the first {len(pictures)} images of {source} can be read; give others with --images"
            )
    else:
        from sklearn.datasets import load_sample_images

        source = "scikit-learn's photographs"
        cut = Cutter(crop_parameters(crop))
        pixels = [cut(np.ascontiguousarray(image), side) for image in load_sample_images().images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), source


def sentence(check: Check, source: str) -> str:
    """The comparison in words."""
    return (
        f"compared on {check.images} images of {source}: logits differ by at most {check.difference:.2g} "
        f"(the largest logit is {check.largest:.3g}), {check.same_class} of {check.images} have the same class"
    )


def main(argv: Sequence[str]) -> None:
    """Parse, write, compare."""
    request = parse_export_request(argv)
    form, path = request.options.format, Path(request.options.target)
    classifier, description, images, source = open_exportable(request, "export")
    check = export(classifier, form, path, description, images)
    print(sentence(check, source))
    print(f"{form}: {path}")
