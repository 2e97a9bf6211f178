"""BlurPool: a low-pass filter before strided convolutions (Zhang, arXiv:1904.11486), as in FFCV's ImageNet script."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16


def apply_blurpool(model: nn.Module) -> list[str]:
    """Blur the input of every strided `nn.Conv2d` of 16 or more input channels; returns their names.

    The filter is the depthwise 3x3 kernel [1 2 1] ⊗ [1 2 1] / 16 at stride 1 with a border of zeros (as FFCV;
    Zhang's own code reflects). It is a forward pre-hook with a non-persistent buffer: modules keep their classes
    and state-dict keys stay those of the plain model, so that plain weights load into a blurred model and back.
    A convolution of one pixel leaves its stride to the filter, whose other results it would drop.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= MIN_CHANNELS:
            kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
            kernel = kernel.to(module.weight).expand(module.in_channels, 1, 3, 3).contiguous()
            module.register_buffer("blur_filter", kernel, persistent=False)
            stride: tuple[int, ...] = (1, 1)
            if module.kernel_size == (1, 1) and module.padding == (0, 0):
                stride, module.stride = module.stride, (1, 1)
            module.register_forward_pre_hook(partial(_blur_input, stride=stride))
            names.append(name)
    return names


def blur(images: Tensor, kernel: Tensor, stride: tuple[int, ...] = (1, 1)) -> Tensor:
    """`images` [B, C, H, W] filtered per channel by `kernel` [C, 1, 3, 3], at every `stride`-th pixel.

    Beyond the border are zeros.
    """
    return F.conv2d(images, kernel, stride=stride, padding=1, groups=images.shape[1])


def _blur_input(module: nn.Module, inputs: tuple[Any, ...], *, stride: tuple[int, ...]) -> tuple[Tensor]:
    (images,) = inputs
    return (blur(images, module.get_buffer("blur_filter"), stride),)
