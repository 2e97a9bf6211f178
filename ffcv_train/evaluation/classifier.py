"""A trained network in use, from Python: predictions of images, metrics on a data set."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ffcv_train.config.read import from_dict, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import DataSet, open_data_set, val_loader
from ffcv_train.data.sources.image_file import ImageError, rgb_of
from ffcv_train.data.sources.image_set import ImageSet
from ffcv_train.evaluation import predict as predicting
from ffcv_train.evaluation import run
from ffcv_train.evaluation.matching import matched
from ffcv_train.evaluation.preprocessing import center_crops, read_image
from ffcv_train.evaluation.subject import Request, Subject, check_arch_is_given, choose_weights, read_subject
from ffcv_train.evaluation.suites.run import SUITES, check_suites, run_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.models.network import AMP_DTYPES, Network
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD
from ffcv_train.models.preset import EVALUATION_KEYS, preset_of
from ffcv_train.system.distributed import choose_device, local_process
from ffcv_train.system.errors import UserError, speaking_of_arguments

ImageLike = str | Path | Image.Image | np.ndarray
"""A path of an image file, a Pillow image, or pixels: uint8 [height, width, 3], RGB"""


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network on its device, with its normalisation, precision, crop and class names; see `load_network`."""

    network: Network
    config: RunConfig
    """What the checkpoint says, and what `load_network` was told besides"""
    subject: Subject
    device: torch.device
    weights: str = "model"
    """Which of the checkpoint's weights these are: ema or model"""

    @property
    def model(self) -> nn.Module:
        """The network itself: normalised floats [B, 3, H, W] to logits [B, K]."""
        return self.network.model

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """In label order; None where the checkpoint does not name its classes."""
        return self.subject.class_names

    @property
    def temperature(self) -> float | None:
        """What `eval --keep-temperature` wrote into the checkpoint for these weights; None where it did not."""
        kept = self.subject.temperature
        return kept["value"] if kept is not None and kept["weights"] == self.weights else None

    def predict(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int = 64, *, calibrated: bool = False
    ) -> Tensor:
        """Logits, float32 [N, K] on the CPU, a row for each of `images`, or [1, K] for a single one.

        Images are cut and resized as evaluation does it (the crop and the first side of `config.validation`).
        `calibrated` divides the logits by `temperature`, so that their softmax is the calibrated one. Raises
        `UserError` naming a file that cannot be read, or where there is no temperature, and `TypeError` for what is no
        image.

        >>> network = load_network("final.pt", device="cpu")
        >>> logits = network.predict(["photo.jpg", Image.open("photo.jpg")])
        >>> [network.class_names[label] for label in logits.argmax(1)]  # doctest: +ELLIPSIS
        ['class...', 'class...']
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        temperature = self.subject.temperature_of(self.weights, "calibrated") if calibrated else 1.0
        if isinstance(images, ImageLike) and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        process = local_process(self.device, 0, 1)
        rows: list[Tensor] = []
        pixels: list[np.ndarray] = []

        def finish() -> None:
            images, unknown = center_crops(pixels, self.config, process), np.arange(len(pixels))
            labels = torch.from_numpy(unknown)
            predictions = predicting.predict(self.network, [Batch(images, labels, labels, unknown)])
            rows.extend(prediction.logits.cpu() / temperature for prediction in predictions)
            pixels.clear()

        for number, image in enumerate(images):
            pixels.append(_pixels(image, number))
            if len(pixels) == batch_size:
                finish()
        if pixels:
            finish()
        return torch.cat(rows) if rows else torch.empty(0, self.network.num_classes)


def load_network(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    arch: str = "",
    num_classes: int = 0,
    weights: str = "auto",
    device: torch.device | str | None = None,
    amp: str | None = None,
    resolution: int | None = None,
    crop_ratio: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The network of a checkpoint, ready to predict and to be evaluated.

    A checkpoint of ours says what it needs, `load_network("runs/my_run/final.pt")`, and so does an export. That of a
    network that was given to `train` needs one like it as `model`. Others (torchvision's, timm's, state dicts,
    safetensors) need `arch`, the name of the architecture, or `model`, and `num_classes` is what the file has. What is
    None of the images' preprocessing is what the checkpoint says, or its library says of its weights: `resolution`, the
    side of images in pixels, `crop_ratio`, interpolation, and `mean` and `std` per channel, of pixels in [0, 1], else
    ImageNet's.
    `weights` is "ema", "model" or "auto": averaged weights where the checkpoint has them.
    `device` as in `Loader`; `amp` is "bf16", "fp16" or "off". Raises `UserError` for a file that does not fit, and
    `ValueError` naming an argument that is wrong.
    """
    if weights not in ("auto", "ema", "model"):
        raise ValueError(f"weights must be auto, ema or model, not {weights!r}")
    if amp is not None and amp not in AMP_DTYPES:
        raise ValueError(f"amp must be one of {', '.join(AMP_DTYPES)}, not {amp!r}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together; pass both or neither")
    chosen = choose_device(device)
    with speaking_of_arguments():
        subject = read_subject(str(path))
        check_arch_is_given(subject, bool(arch) or model is not None, ", or pass one like it as model")
        if subject.ours and arch not in ("", subject.arch):
            raise UserError(f"{path} is a checkpoint of {subject.arch}, not {arch}; leave arch out")
        network_name = type(model).__name__ if model is not None else arch
        subject = subject.opened(network_name)
        told = {
            "model.arch": network_name or None,
            "model.num_classes": num_classes or None,
            "training.amp": amp,
            "validation.resolution": (resolution,) if resolution is not None else None,
            "validation.crop_ratio": crop_ratio,
            "data.mean": mean or (IMAGENET_MEAN if model is not None and not subject.ours else None),
            "data.std": std or (IMAGENET_STD if model is not None and not subject.ours else None),
        }
        named = arch or (subject.arch if subject.named and model is None else "")
        config = _configured(subject, {key: value for key, value in told.items() if value is not None}, named)
        used = choose_weights(subject, weights)
        request = Request(subject, config, used, None, False)
        network = run.requested_network(request, chosen, model)
    network.model.eval()
    # Without the file, which is read by now.
    return Classifier(network, config, dataclasses.replace(subject, checkpoint=None), chosen, used)


def evaluate(
    network: Classifier | str | Path,
    data_set: DataSet | str | Path,
    *,
    batch_size: int | None = None,
    flip: bool = False,
    num_workers: int = 0,
    ignore_class_names: bool = False,
    suites: SuiteOptions | Sequence[str] = (),
) -> dict[str, Any]:
    """Metrics of a network, or of a checkpoint, on a data set, each sample counted once: those of `eval`.

    Top-1, top-5, NLL and calibration of plain softmax (see `MetricSums.compute`), at the network's resolution; with
    `flip` also of the logits averaged over both mirror images, under `flip_averaged`. Under torchrun, with
    `torch.distributed` initialised, every rank takes its share and all return the same. `batch_size` is per device;
    `num_workers` 0 is this process's share of the cores. `suites` names what `ffcv-train eval --suite` does, or is a
    `SuiteOptions`; their records are under `suites`. Classes are matched by name, and what is to be known of that are
    texts under `notes`. Raises `UserError` where they are not the network's, unless `ignore_class_names`.

    >>> metrics = evaluate(load_network("final.pt", device="cpu"), "val.beton")
    >>> metrics["count"], 0 <= metrics["top_1"] <= 1
    (50, True)
    """
    if isinstance(network, str | Path):
        network = load_network(network)
    if not isinstance(network, Classifier):
        raise TypeError(f"network must be a checkpoint or what load_network returned, not {type(network).__name__}")
    if isinstance(data_set, str | Path):
        data_set = open_data_set(data_set)
    if not isinstance(data_set, Beton | ImageSet):
        raise TypeError(f"data_set must be a path or what open_data_set returned, not {type(data_set).__name__}")
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    wanted = suites if isinstance(suites, SuiteOptions) else SuiteOptions(tuple(suites))
    for name in wanted.suites:
        if name not in SUITES:
            raise ValueError(f"suites names {name!r}, which is none of {', '.join(SUITES)}")
    config, process = network.config, local_process(network.device)
    validation = dataclasses.replace(config.validation, batch_size=batch_size or config.validation.batch_size)
    config = dataclasses.replace(
        config, validation=validation, data=dataclasses.replace(config.data, num_workers=num_workers)
    )
    side = validation.resolution[0]
    with speaking_of_arguments():
        data_set, notes = matched(data_set, network.subject, network.network.num_classes, ignore=ignore_class_names)
        check_suites(wanted, data_set, network.network.num_classes)
        with (
            contextlib.closing(val_loader(config, data_set, side, process)) as loader,
            predicting.out_of_memory(config, side),
            contextlib.closing(loader.epoch()) as batches,
        ):
            metrics = predicting.evaluate_batches(network.network, batches, tta=flip, num_samples=len(data_set))
        if not wanted.suites:
            return {**metrics, "notes": notes}
        names = network.class_names or data_set.class_names
        records = run_suites(wanted, network.network, config, data_set, process, names)
        return {**metrics, "notes": notes, "suites": records}


def _configured(subject: Subject, told: Mapping[str, Any], arch: str) -> RunConfig:
    """The checkpoint's configuration, under what is `told` and, of a foreign one of `arch`, what is stated for it."""
    content = to_dict(from_dict(RunConfig, subject.config, subject.path))
    stated = preset_of(subject.file, arch) if arch and not subject.ours else None
    taken = stated.untold(told) if stated else {}
    for key, value in [*((key, taken[key]) for key in EVALUATION_KEYS if key in taken), *told.items()]:
        section, name = key.split(".")
        content[section][name] = value
    return from_dict(RunConfig, content, "the arguments")


def _pixels(image: ImageLike, number: int) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return rgb_of(image)
        except ImageError as error:
            raise UserError(f"image {number} {error}") from None
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(image)
    what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray | Tensor) else type(image).__name__
    raise TypeError(
        f"images[{number}] must be a path, a Pillow image or pixels, uint8 [height, width, 3], RGB, not {what}"
    )
