"""Operations of the policies on a batch, each sample with its own strength; Pillow's definitions.

Each takes `images` uint8 [n, 3, H, W], RGB, on any device, and `amount` float32 [n] on the same, and returns uint8
[n, 3, H, W]. They agree with Pillow to one level of 255, but for `gaussian_blur`, where Pillow approximates.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ffcv_train.augment.draws import to_device

Operation = Callable[[Tensor, Tensor], Tensor]
_BLUR_RADIUS = 6  # pixels: three times the largest sigma, 2


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to 0 … 255; `amount` is not read."""
    return tv.autocontrast(images)


def equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Flatten each channel's histogram; `amount` is not read."""
    return tv.equalize(images)


def invert(images: Tensor, amount: Tensor) -> Tensor:
    """255 − x; `amount` is not read."""
    return 255 - images


def posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Keep the highest `amount` bits, whole numbers in [0, 8]."""
    mask = 256 - torch.exp2(8 - amount)
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Invert what is not below the threshold `amount` in [0, 256]."""
    return torch.where(images < amount.to(torch.int16).view(-1, 1, 1, 1), images, 255 - images)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` to what lies below 128."""
    brighter = (images.to(torch.int16) + amount.to(torch.int16).view(-1, 1, 1, 1)).clamp_(max=255)
    return torch.where(images < 128, brighter.to(torch.uint8), images)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """From black (0) over the image (1) on."""
    return _blend(torch.zeros((), device=images.device), images, amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """From the image's mean grey (0) over the image (1) on."""
    mean = _luminance(images).float().mean(dim=(1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor_(), images, amount)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    """From greyscale (0) over the image (1) on; Pillow's ImageEnhance.Color."""
    return _blend(_luminance(images).float(), images, amount)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """From Pillow's SMOOTH (0) over the image (1) on; the outermost pixels stay as they are."""
    smooth = images.float()
    # Not a convolution, for which cuDNN would search anew at every number of images.
    inner = (F.avg_pool2d(smooth, 3, 1, divisor_override=1) + 4 * smooth[..., 1:-1, 1:-1]) / 13
    smooth[..., 1:-1, 1:-1] = (inner + 0.5).floor_()
    return _blend(smooth, images, amount)


def grayscale(images: Tensor, amount: Tensor) -> Tensor:
    """Luminance in all three channels; `amount` is not read."""
    return _luminance(images).to(torch.uint8).expand_as(images)


def gaussian_blur(images: Tensor, amount: Tensor) -> Tensor:
    """Blur with the standard deviation `amount` in (0, 2] pixels; the edge pixels go on beyond the image."""
    n, channels, height, width = images.shape
    reach = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = torch.exp(-0.5 * (reach / amount.view(-1, 1)).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    x = F.pad(images.float(), [_BLUR_RADIUS] * 4, mode="replicate").reshape(1, n * channels, *(-1, width + 12))
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * channels)
    return (x.view(n, channels, height, width) + 0.5).clamp_(0, 255).to(torch.uint8)


def rotate(images: Tensor, amount: Tensor) -> Tensor:
    """By `amount` degrees, counter-clockwise, around the centre."""
    return affine(images, rotation(amount, *images.shape[2:]))


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """Rows move left by `amount` × their distance from the top."""
    return affine(images, horizontal_shear(amount, *images.shape[2:]))


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Columns move up by `amount` × their distance from the left."""
    return affine(images, vertical_shear(amount, *images.shape[2:]))


def translate_x(images: Tensor, amount: Tensor) -> Tensor:
    """To the left by `amount` × the width."""
    return affine(images, horizontal_translation(amount, *images.shape[2:]))


def translate_y(images: Tensor, amount: Tensor) -> Tensor:
    """Up by `amount` × the height."""
    return affine(images, vertical_translation(amount, *images.shape[2:]))


def translate_x_pixels(images: Tensor, amount: Tensor) -> Tensor:
    """To the left by `amount` pixels."""
    return affine(images, horizontal_pixels(amount, *images.shape[2:]))


def translate_y_pixels(images: Tensor, amount: Tensor) -> Tensor:
    """Up by `amount` pixels."""
    return affine(images, vertical_pixels(amount, *images.shape[2:]))


def rotation(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `rotate`."""
    angle = -amount * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos], dim=1)


def horizontal_shear(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `shear_x`."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, amount, zero, zero, one, zero], dim=1)


def vertical_shear(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `shear_y`."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, zero, zero, amount, one, zero], dim=1)


def horizontal_translation(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `translate_x`."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, zero, amount * width, zero, one, zero], dim=1)


def vertical_translation(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `translate_y`."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, zero, zero, zero, one, amount * height], dim=1)


def horizontal_pixels(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `translate_x_pixels`."""
    return horizontal_translation(amount / width, height, width)


def vertical_pixels(amount: Tensor, height: int, width: int) -> Tensor:
    """`affine`'s map for `translate_y_pixels`."""
    return vertical_translation(amount / height, height, width)


GEOMETRIC: dict[Operation, Callable[[Tensor, int, int], Tensor]] = {
    rotate: rotation,
    shear_x: horizontal_shear,
    shear_y: vertical_shear,
    translate_x: horizontal_translation,
    translate_y: vertical_translation,
    translate_x_pixels: horizontal_pixels,
    translate_y_pixels: vertical_pixels,
}
"""The operations that are `affine`, by their maps: functions of the amounts [n] and the images' height and width"""
FILL = (124, 116, 104)
"""What comes in from outside the image: ImageNet's mean, as timm has it"""


def affine(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear samples at (x, y) = (a x' + b y' + c, d x' + e y' + f) for the output's pixel centres (x', y').

    `maps` float32 [n, 6] holds a to f of each image, on the images' device. Coordinates are in pixels with the image's
    corner at 0. As in Pillow, points outside take `FILL`, and within half a pixel of the border the border's value.
    """
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device) + 0.5
    row = (torch.arange(height, device=images.device) + 0.5)[:, None]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(dim=1)
    x, y = a * column + b * row + c, d * column + e * row + f
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[:, None]
    fill = to_device(np.array(FILL, np.float32), images.device).view(3, 1, 1)
    return torch.where(inside, found + 0.5, fill).to(torch.uint8)


def _luminance(images: Tensor) -> Tensor:
    """Pillow's L of RGB: int32 [n, 1, H, W]."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(degenerate: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    """degenerate + amount × (images − degenerate), cut to 0 … 255 and to whole numbers as Pillow does."""
    mixed = degenerate + amount.view(-1, 1, 1, 1) * (images.float() - degenerate)
    return mixed.clamp_(0, 255).to(torch.uint8)
