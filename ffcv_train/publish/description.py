"""What whoever uses an exported network must know of it."""

import json
from dataclasses import asdict, dataclass

from ffcv_train import __version__
from ffcv_train.evaluation.classifier import Classifier


@dataclass(frozen=True)
class Description:
    """A network's images and classes, in plain values."""

    arch: str
    num_classes: int
    class_names: tuple[str, ...] | None
    """In label order"""
    side: int
    """Of its images, in pixels"""
    mean: tuple[float, ...]
    """Per channel, of RGB pixels in [0, 1]"""
    std: tuple[float, ...]
    crop_ratio: float
    """Side of the centre crop over the shorter side of the image"""
    crop: str
    interpolation: str
    use_blurpool: bool
    weights: str
    """ "ema" or "model": averaged weights, or plain ones"""
    epoch: int | None
    producer: str

    def texts(self) -> dict[str, str]:
        """As formats hold it whose metadata are texts: lists and numbers as JSON."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in asdict(self).items()
            if value is not None
        }


def describe(classifier: Classifier) -> Description:
    """The description of `classifier`."""
    config, normalise = classifier.config, classifier.network.normalise
    return Description(
        arch=config.model.arch,
        num_classes=classifier.network.num_classes,
        class_names=classifier.class_names,
        side=config.validation.resolution[0],
        mean=normalise.mean,
        std=normalise.std,
        crop_ratio=config.validation.crop_ratio,
        crop=config.validation.crop,
        interpolation=config.validation.interpolation,
        use_blurpool=config.model.use_blurpool,
        weights=classifier.weights,
        epoch=classifier.subject.epoch,
        producer=f"ffcv_train {__version__}",
    )
