"""Grad-CAM (Selvaraju et al., arXiv:1610.02391) of checkpoints on a few images: what ffcv-train gradcam does."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.evaluation.gradcam_images import FolderImages, Images, open_images
from ffcv_train.evaluation.matching import are_imagenets, matched, say
from ffcv_train.evaluation.run import requested_network
from ffcv_train.evaluation.subject import Request
from ffcv_train.metrics.maps import Cell, Row
from ffcv_train.models.class_names import ClassNames, imagenet_names
from ffcv_train.models.inspect.feature_map import FeatureMap, need_feature_map
from ffcv_train.models.inspect.trace import evaluation_mode
from ffcv_train.models.network import Network
from ffcv_train.system.class_names import check_same_classes, label_called
from ffcv_train.system.distributed import Process, need_one_process
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class GradcamRequest:
    """A resolved command line of ffcv-train gradcam."""

    requests: tuple[Request, ...]
    """A checkpoint each"""
    labels: tuple[str, ...]
    output: Path
    """The figure, ending in .png"""
    options: SimpleNamespace
    names: ClassNames | None
    """From --names"""

    @property
    def config(self) -> RunConfig:
        return self.requests[0].config


def run_gradcam(request: GradcamRequest, process: Process) -> list[Row]:
    """A row per checkpoint, a cell per image. Raises `UserError`, for what the checkpoints are before work starts."""
    need_one_process(process, "ffcv-train gradcam")
    options = request.options
    images = open_images(
        options.images,
        count=options.count,
        seed=options.seed,
        indices=options.indices,
        classes=request.config.data.classes,
    )
    if request.output.resolve() in (path.resolve() for path in images.files):
        raise UserError(f"--output {request.output} would replace an image that is read; name another file")
    networks, layers = [], []
    for one in request.requests:
        network = requested_network(one, process.device)
        networks.append(network)
        layers.append(need_feature_map(network.model, one.config.validation.resolution[0], one.config.model.arch))
    _check_same(request, networks)
    images, notes = _matched(request, networks[0].num_classes, images)
    say(notes, process)
    names = _class_names(request, networks[0].num_classes, images)
    true = images.labels(names)
    wish = _wish(options.class_, names, networks[0].num_classes, any(label is not None for label in true))
    rows = []
    for one, label, network, layer in zip(request.requests, request.labels, networks, layers, strict=True):
        pixels = images.read(one.config, process)
        try:
            found = cells(network, layer, pixels, true, wish, names, images.texts)
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"the GPU has too little memory for Grad-CAM of {len(pixels)} images at once; explain fewer"
            ) from None
        rows.append(Row(label, layer.name, layer.grid, found))
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

    with evaluation_mode(network.model):
        with torch.no_grad():
            logits = network.logits(inputs)
        predicted = logits.argmax(dim=1).tolist()
        if isinstance(wish, int):
            explained = [wish] * len(predicted)
        elif wish == "predicted":
            explained = predicted
        else:
            explained = [guess if label is None else label for label, guess in zip(true, predicted, strict=True)]
        with layer.probe() as probe:
            method = LayerGradCam(_Function(network.logits), probe)
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


def _check_same(request: GradcamRequest, networks: Sequence[Network]) -> None:
    """Raise `UserError` where the checkpoints have not the same classes."""
    first, counts = request.requests[0].subject.path, [network.num_classes for network in networks]
    for one, count in zip(request.requests[1:], counts[1:], strict=True):
        if count != counts[0]:
            raise UserError(
                f"{first} has {counts[0]} classes, {one.subject.path} has {count}; give checkpoints of the same classes"
            )
    if request.names is not None and len(request.names.shown) != counts[0]:
        raise UserError(
            f"--names {request.options.names} has {len(request.names.shown)} names, {first} has {counts[0]} classes; "
            "give the names of the model's classes"
        )
    named = [(one.subject.path, one.subject.class_names) for one in request.requests if one.subject.class_names]
    for path, names in named[1:]:
        check_same_classes(*named[0], path, names, "give checkpoints of the same classes")


def _matched(request: GradcamRequest, num_classes: int, images: Images) -> tuple[Images, list[str]]:
    """`images` with the labels of the checkpoints' classes, and notes for the user. Raises `UserError`."""
    if isinstance(images, FolderImages):
        return images, []
    subjects = [one.subject for one in request.requests]
    subject = next((one for one in subjects if one.class_names), subjects[0])
    if subject.class_names is None and request.names is not None and set(images.used_names) <= set(request.names.keys):
        subject = dataclasses.replace(subject, class_names=request.names.keys)
    data_set, notes = matched(images.data_set, subject, num_classes, ignore=request.requests[0].ignore_class_names)
    return dataclasses.replace(images, data_set=data_set), notes  # type: ignore[arg-type]


def _class_names(request: GradcamRequest, num_classes: int, images: Images) -> ClassNames | None:
    """The names of the checkpoints' classes, as far as they are known."""
    if request.names is not None:
        return request.names
    names = next((one.subject.class_names for one in request.requests if one.subject.class_names), None)
    if names is None and num_classes == len(imagenet_names().keys) and are_imagenets(images.used_names):
        return imagenet_names()
    names = names or images.class_names
    return ClassNames(names, names) if names is not None and len(names) == num_classes else None


def _wish(text: str | None, names: ClassNames | None, count: int, any_true: bool) -> str | int:
    if text is None:
        return "true"
    if text == "predicted":
        return text
    if text == "true":
        if not any_true:
            raise UserError("--class true: the images do not say their class; put them into folders named by class")
        return text
    label = None
    if names is not None:
        found = (label_called(some, text) for some in (names.keys, names.shown))
        label = next((label for label in found if label is not None), None)
    if label is None and text.isdecimal() and int(text) < count:
        label = int(text)
    if label is None:
        some = "" if names is None else f" or a name such as {', '.join(names.shown[:5])}"
        raise UserError(f"--class {text} is no class of the model; give true, predicted, 0 to {count - 1}{some}")
    return label
