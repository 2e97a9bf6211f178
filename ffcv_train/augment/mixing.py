"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) within a batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffcv_train.augment.draws import MIXING, beta, to_device, uniforms
from ffcv_train.config.schema import AugmentConfig


@dataclass(frozen=True, eq=False)
class Mixture:
    """How each sample of a batch is mixed with its partner: sample i with sample B − 1 − i, as in timm."""

    share: np.ndarray
    """float64 [B]: λ, the sample's own share of image and target"""
    boxes: np.ndarray
    """int64 [B, 4]: top, left, bottom, right of the partner's box (CutMix); an empty box: Mixup"""


def draw(config: AugmentConfig, side: int, seed: int, epoch: int, keys: np.ndarray) -> Mixture | None:
    """The mixture of the samples `keys` of one batch; None where nothing is ever mixed.

    In `config.mix_mode` pair both samples of a pair share λ and box, drawn from the stream of the one that stands
    first; in mode batch all do, from the stream of the batch's first (timm's modes of these names). CutMix takes λ from
    the area that the box really has.
    """
    if not (config.mixup or config.cutmix) or not config.mix_prob:
        return None
    count = len(keys)
    places = np.arange(count)
    first = np.zeros_like(places) if config.mix_mode == "batch" else np.minimum(places, places[::-1])
    applied, switch, own, down, right = uniforms(seed, epoch, keys[first], MIXING, 5).T
    cut = (switch < config.mix_switch) if config.mixup and config.cutmix else np.full(count, bool(config.cutmix))
    share = np.ones(count)
    for chosen, concentration in ((~cut, config.mixup), (cut, config.cutmix)):
        if chosen.any():
            share[chosen] = beta(own[chosen], concentration)
    share = np.where(applied < config.mix_prob, share, 1.0)
    half = np.floor(side * np.sqrt(1 - share)) // 2
    middle = np.floor(np.stack([down, right]) * side)
    low, high = np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)
    found = np.where(cut[:, None], np.stack([*low, *high], axis=1), 0).astype(np.int64)
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    return Mixture(np.where(cut, 1 - area / side**2, share), found)


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    """The mixed copy of normalised `images` [B, 3, R, R], in their type; λ acts in float32."""
    partner = images.flip(0)
    boxes = to_device(mixture.boxes, images.device)
    top, left, bottom, right = (boxes[:, column, None] for column in range(4))
    pixel = torch.arange(images.shape[-1], device=images.device)
    inside = ((pixel >= top) & (pixel < bottom))[:, :, None] & ((pixel >= left) & (pixel < right))[:, None, :]
    # A box is all the partner's or nothing; without one the whole image is mixed.
    whole = to_device(np.where(mixture.boxes[:, 2] > 0, 1.0, mixture.share).astype(np.float32), images.device).view(
        -1, 1, 1, 1
    )
    blended = torch.lerp(partner.float(), images.float(), whole)
    return torch.where(inside[:, None], partner, blended.to(images.dtype))


def mixed_targets(labels: Tensor, mixture: Mixture, num_classes: int) -> Tensor:
    """Probabilities float32 [B, K] of `labels` int64 [B]: λ on the sample's class, 1 − λ on its partner's."""
    share = to_device(mixture.share.astype(np.float32), labels.device)[:, None]
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels[:, None], share)
    return targets.scatter_add_(1, labels.flip(0)[:, None], 1 - share)
