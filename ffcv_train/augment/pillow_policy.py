"""RandAugment and 3-Augment on Pillow images, for the worker processes of zip archives and folders: timm's."""

import random
from collections.abc import Callable

from PIL import Image, ImageFilter, ImageOps

from ffcv_train.config.schema import AugmentConfig

Policy = Callable[[Image.Image], Image.Image]

# timm's posterising keeps no bit at a magnitude of 10, which newer Pillows refuse.
_BELOW_FULL = 9.99


def policy(config: AugmentConfig) -> Policy:
    """timm's RandAugment, or DeiT III's 3-Augment, on a Pillow image; draws from the global generators."""
    if config.policy == "rand_augment":
        # timm takes half a second to import: not for runs without it.
        from timm.data.auto_augment import rand_augment_transform

        hints = {"img_mean": (124, 116, 104), "magnitude_std": config.magnitude_std, "magnitude_max": _BELOW_FULL}
        hints["interpolation"] = Image.Resampling.BILINEAR
        transform = rand_augment_transform(f"rand-m9-n{config.operations}-inc1", hints)
        for operation in transform.ops:  # timm's text takes whole numbers only
            operation.magnitude = min(config.magnitude, _BELOW_FULL)
        return transform
    from torchvision.transforms import ColorJitter

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
