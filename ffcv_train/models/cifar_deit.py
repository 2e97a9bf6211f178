"""DeiT for images of 32 pixels: patches of 4, so that there are 64 of them."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_TINY: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
_TINY |= {"dynamic_img_size": True}


def _deit(distilled: bool, num_classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    # timm takes half a second to import: not for the others.
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if distilled else VisionTransformer
    return kind(num_classes=num_classes, drop_path_rate=drop_path_rate, **_TINY)


CIFAR_TRANSFORMERS: dict[str, Callable[..., nn.Module]] = {
    "cifar_deit_tiny": functools.partial(_deit, False),
    "cifar_deit_tiny_distilled": functools.partial(_deit, True),
}
"""DeiT-Tiny's width, depth and heads; called with the number of classes, and drop_path_rate for stochastic depth"""
