"""The policies on Pillow images, for the worker processes of zip archives and folders: timm's and torchvision's."""

import random
from collections.abc import Callable

from PIL import Image, ImageFilter, ImageOps

from ffcv_train.augment.operations import FILL
from ffcv_train.config.schema import AugmentConfig

Policy = Callable[[Image.Image], Image.Image]

# timm's posterising keeps no bit at a magnitude of 10, which newer Pillows refuse.
_BELOW_FULL = 9.99


def policy(config: AugmentConfig) -> Policy:
    """`config.policy` on a Pillow image; draws from the global generators."""
    if config.policy in ("rand_augment", "auto_augment", "augmix"):
        return _of_timm(config)
    # torchvision's transforms take as long to import as timm: not for runs without them.
    from torchvision.transforms import ColorJitter, InterpolationMode, TrivialAugmentWide

    if config.policy == "trivial_augment":
        return TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(FILL))

    jitter = ColorJitter(*[config.color_jitter] * 3)

    def three_augment(image: Image.Image) -> Image.Image:
        kind = random.randrange(3)
        if kind == 0:
            image = image.convert("L").convert("RGB")
        elif kind == 1:
            image = ImageOps.solarize(image)
        else:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return jitter(image)

    return three_augment


def _of_timm(config: AugmentConfig) -> Policy:
    # timm takes half a second to import: not for runs without it.
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    hints = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    if config.policy == "auto_augment":
        return auto_augment_transform("original", hints)
    hints |= {"magnitude_max": _BELOW_FULL}
    if config.policy == "augmix":
        transform = augment_and_mix_transform("augmix-m3-w3", hints)
    else:
        hints |= {"magnitude_std": config.magnitude_std}
        transform = rand_augment_transform(f"rand-m9-n{config.operations}-inc1", hints)
    for operation in transform.ops:  # timm's text takes whole numbers only
        operation.magnitude = min(config.magnitude, _BELOW_FULL)
    return transform
