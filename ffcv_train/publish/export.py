"""Export: a network in another program's format, and at once what that program makes of real images."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ffcv_train.evaluation.classifier import Classifier
from ffcv_train.models.factory import create_model
from ffcv_train.publish.description import Description
from ffcv_train.publish.formats import FORMATS
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, umask

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit where that is above 1"""


@dataclass(frozen=True)
class Check:
    """What the format's own reader made of images."""

    images: int
    difference: float
    """Largest, of logits"""
    largest: float
    """Largest magnitude of our logits"""
    same_class: int
    """Images whose likeliest class is ours"""


def check_output(format: str, path: Path) -> None:
    """Raise `UserError` where `path` cannot be written in `format`."""
    suffixes = FORMATS[format].suffixes
    if not suffixes and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"--output {path} exists; --format={format} writes a folder, name a new one")
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"--output {path} must end in {' or '.join(suffixes)} for --format={format}")
    if suffixes and path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")


def export(classifier: Classifier, format: str, path: Path, description: Description, images: Tensor) -> Check:
    """Write the network to `path`, whole or not at all, and compare it with ours on `images`, uint8 [B, 3, R, R].

    `classifier` lies on the CPU, in float32. What was written is read by the format's own library, and runs on batches
    of one and of all images. Raises `UserError` where the format cannot hold the network, or gives other logits.
    """
    check_output(format, path)
    model = classifier.network.model.eval().requires_grad_(False)
    with torch.no_grad():
        normalised = classifier.network.normalise(images).contiguous()
        wanted = model(normalised)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # On the same disk, so that it can be renamed.
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            written = folder / path.name
            FORMATS[format].write(model, description, written)
            like = create_model(classifier.config.model, description.num_classes) if format == "safetensors" else model
            forward = FORMATS[format].read(written, description, like.eval())
            with torch.no_grad():
                found = (
                    torch.cat([forward(normalised[:1]), forward(normalised[1:])])
                    if len(images) > 1
                    else forward(normalised)
                )
            check = _compare(wanted, found)
            if not check.difference <= TOLERANCE * max(1.0, check.largest):
                raise UserError(
                    f"the exported network's logits differ from ours by up to {check.difference:.3g}, with logits of "
                    f"up to {check.largest:.3g}; nothing is written, choose another --format"
                )
            _publish(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return check


def _compare(wanted: Tensor, found: Tensor) -> Check:
    return Check(
        len(wanted),
        float((found - wanted).abs().max()),
        float(wanted.abs().max()),
        int((found.argmax(1) == wanted.argmax(1)).sum()),
    )


def _publish(folder: Path, path: Path) -> None:
    """Move what lies in `folder` beside `path`, which comes last."""
    rights = ~umask()
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == path.name):
        entry.chmod((0o777 if entry.is_dir() else 0o666) & rights)
        target = path.with_name(entry.name)
        if target.is_dir():
            with contextlib.suppress(OSError):
                target.rmdir()
        entry.replace(target)
