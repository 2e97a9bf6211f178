"""What policies are made of: layers of one operation per sample, and mixtures of chains of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffcv_train.augment import operations as ops
from ffcv_train.augment.draws import to_device

NOTHING = -1


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation for each sample of a batch."""

    operations: np.ndarray
    """int64 [B], indices into `OPERATIONS`; −1: the sample stays as it is"""
    amounts: np.ndarray
    """float32 [B], in the operation's own unit"""


@dataclass(frozen=True, eq=False)
class MixedChains:
    """Chains of operations, mixed with each other and then with the image, as AugMix does."""

    chains: Sequence[Sequence[Layer]]
    weights: np.ndarray
    """float32 [B, chains], of sum 1"""
    share: np.ndarray
    """float32 [B], of the mixed chains in the result"""


Step = Layer | MixedChains

OPERATIONS: tuple[ops.Operation, ...] = (
    ops.autocontrast,
    ops.equalize,
    ops.invert,
    ops.rotate,
    ops.posterize,
    ops.solarize,
    ops.solarize_add,
    ops.saturation,
    ops.contrast,
    ops.brightness,
    ops.sharpness,
    ops.shear_x,
    ops.shear_y,
    ops.translate_x,
    ops.translate_y,
    ops.grayscale,
    ops.gaussian_blur,
    ops.translate_x_pixels,
    ops.translate_y_pixels,
)
_GEOMETRIC = [OPERATIONS.index(operation) for operation in ops.GEOMETRIC]


def apply(images: Tensor, steps: Sequence[Step]) -> Tensor:
    """The augmented copy of `images` uint8 [B, 3, R, R]. Nothing waits for the device: all sizes are known here."""
    ours = False  # whether the tensor may be changed
    for step in steps:
        if isinstance(step, MixedChains):
            images = _mix(images, step)
        else:
            images = images if ours else images.clone()
            _change(images, step)
        ours = True
    return images


def _mix(images: Tensor, mixture: MixedChains) -> Tensor:
    """As Pillow blends: cut to whole numbers after the chains are mixed, and again after the image is."""
    mixed = torch.zeros_like(images, dtype=torch.float32)
    weights = to_device(np.ascontiguousarray(mixture.weights.T), images.device).view(len(mixture.chains), -1, 1, 1, 1)
    for chain, weight in zip(mixture.chains, weights, strict=True):
        mixed += weight * apply(images, chain)
    share = to_device(mixture.share, images.device).view(-1, 1, 1, 1)
    whole = mixed.clamp_(0, 255).floor_()
    return (images + share * (whole - images)).to(torch.uint8)


def _change(images: Tensor, layer: Layer) -> None:
    # Geometric operations are one, with a map for each sample.
    kinds = np.where(np.isin(layer.operations, _GEOMETRIC), _GEOMETRIC[0], layer.operations)
    order = np.argsort(kinds, kind="stable")
    positions = to_device(order, images.device)
    amounts = to_device(layer.amounts[order], images.device)
    present, starts = np.unique(kinds[order], return_index=True)
    ends = [*starts[1:], len(order)]
    for kind, start, end in zip(present.tolist(), starts, ends, strict=True):
        if kind == NOTHING:
            continue
        rows = positions[start:end]
        if kind == _GEOMETRIC[0]:
            own = order[start:end]
            maps = _maps(layer.operations[own], layer.amounts[own], *images.shape[2:])
            changed = ops.affine(images[rows], to_device(maps, images.device))
        else:
            changed = OPERATIONS[kind](images[rows], amounts[start:end])
        images.index_copy_(0, rows, changed)


def _maps(operations: np.ndarray, amounts: np.ndarray, height: int, width: int) -> np.ndarray:
    """`affine`'s maps, float32 [n, 6], for geometric `operations` int64 [n]."""
    maps = np.empty((len(operations), 6), np.float32)
    for operation in np.unique(operations).tolist():
        rows = operations == operation
        maps[rows] = ops.GEOMETRIC[OPERATIONS[operation]](torch.from_numpy(amounts[rows]), height, width).numpy()
    return maps
