"""Which operations a sample gets, and how strongly: RandAugment as timm and DeiT have it, and DeiT III's 3-Augment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from ffcv_train.augment import operations as ops
from ffcv_train.augment.draws import POLICY, to_device, uniforms
from ffcv_train.config.schema import AugmentConfig

_FULL = 10.0  # the magnitude that is the strongest
_APPLIED = 0.5  # of RandAugment's operations
_TRANSLATION = 0.45  # of the side, at full magnitude
_NOTHING = -1


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation for each sample of a batch."""

    operations: np.ndarray
    """int64 [B], indices into `OPERATIONS`; −1: the sample stays as it is"""
    amounts: np.ndarray
    """float32 [B], in the operation's own unit"""


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
)
_GEOMETRIC = [OPERATIONS.index(operation) for operation in ops.GEOMETRIC]
RAND_AUGMENT = OPERATIONS[:15]
"""timm's set for `rand-…-inc1`, in which every operation is the stronger, the larger its magnitude"""


def plan(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[Layer]:
    """What `config.policy` does to the samples `keys` in `epoch`."""
    if config.policy == "rand_augment":
        return _rand_augment(config, seed, epoch, keys)
    if config.policy == "three_augment":
        return _three_augment(config, seed, epoch, keys)
    return []


def apply(images: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The augmented copy of `images` uint8 [B, 3, R, R]. Nothing waits for the device: all sizes are known here."""
    if not layers:
        return images
    images = images.clone()
    for layer in layers:
        # Geometric operations are one, with a map for each sample.
        kinds = np.where(np.isin(layer.operations, _GEOMETRIC), _GEOMETRIC[0], layer.operations)
        order = np.argsort(kinds, kind="stable")
        positions = to_device(order, images.device)
        amounts = to_device(layer.amounts[order], images.device)
        present, starts = np.unique(kinds[order], return_index=True)
        ends = [*starts[1:], len(order)]
        for kind, start, end in zip(present.tolist(), starts, ends, strict=True):
            if kind == _NOTHING:
                continue
            rows = positions[start:end]
            if kind == _GEOMETRIC[0]:
                own = order[start:end]
                maps = _maps(layer.operations[own], layer.amounts[own], *images.shape[2:])
                changed = ops.affine(images[rows], to_device(maps, images.device))
            else:
                changed = OPERATIONS[kind](images[rows], amounts[start:end])
            images.index_copy_(0, rows, changed)
    return images


def _maps(operations: np.ndarray, amounts: np.ndarray, height: int, width: int) -> np.ndarray:
    """`affine`'s maps, float32 [n, 6], for geometric `operations` int64 [n]."""
    maps = np.empty((len(operations), 6), np.float32)
    for operation in np.unique(operations).tolist():
        rows = operations == operation
        maps[rows] = ops.GEOMETRIC[OPERATIONS[operation]](torch.from_numpy(amounts[rows]), height, width).numpy()
    return maps


def _rand_augment(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[Layer]:
    """timm's `rand-m{magnitude}-mstd{std}-n{operations}-inc1`."""
    draws = uniforms(seed, epoch, keys, POLICY, 4 * config.operations)
    layers = []
    for number in range(config.operations):
        applied, choice, strength, sign = draws[:, 4 * number : 4 * number + 4].T
        operations = (choice * len(RAND_AUGMENT)).astype(np.int64)
        # Not from 0, whose normal quantile is infinite.
        magnitude = config.magnitude + config.magnitude_std * ndtri(np.maximum(strength, 2.0**-53))
        level = np.clip(magnitude, 0, _FULL) / _FULL
        amounts = _amounts(operations, level, np.where(sign < 0.5, -1.0, 1.0))
        layers.append(Layer(np.where(applied < _APPLIED, operations, _NOTHING), amounts.astype(np.float32)))
    return layers


def _amounts(operations: np.ndarray, level: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """timm's units of each operation for levels in [0, 1]."""
    factor = np.maximum(0.1, 1 + 0.9 * sign * level)
    tables = {
        ops.rotate: 30 * sign * level,
        # timm keeps no bit at full magnitude, which newer Pillows refuse.
        ops.posterize: np.maximum(1, 4 - np.floor(4 * level)),
        ops.solarize: 256 - np.floor(256 * level),
        ops.solarize_add: np.minimum(128, np.floor(110 * level)),
        ops.saturation: factor,
        ops.contrast: factor,
        ops.brightness: factor,
        ops.sharpness: factor,
        ops.shear_x: 0.3 * sign * level,
        ops.shear_y: 0.3 * sign * level,
        ops.translate_x: _TRANSLATION * sign * level,
        ops.translate_y: _TRANSLATION * sign * level,
    }
    amounts = np.zeros(len(operations))
    for operation, values in tables.items():
        amounts = np.where(operations == OPERATIONS.index(operation), values, amounts)
    return amounts


def _three_augment(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[Layer]:
    """Greyscale, solarise or blur, then brightness, contrast and saturation in a random order (arXiv:2204.07118)."""
    draws = uniforms(seed, epoch, keys, POLICY, 8)
    one_of = np.array([OPERATIONS.index(op) for op in (ops.grayscale, ops.solarize, ops.gaussian_blur)])
    choice = (draws[:, 0] * 3).astype(np.int64)
    amounts = np.choose(choice, [np.zeros(len(keys)), np.full(len(keys), 128.0), 0.1 + 1.9 * draws[:, 1]])
    layers = [Layer(one_of[choice], amounts.astype(np.float32))]
    if config.color_jitter:
        jitter = np.array([OPERATIONS.index(op) for op in (ops.brightness, ops.contrast, ops.saturation)])
        order = np.argsort(draws[:, 2:5], axis=1)
        factors = 1 + config.color_jitter * (2 * draws[:, 5:8] - 1)
        layers += [Layer(jitter[order[:, k]], factors[:, k].astype(np.float32)) for k in range(3)]
    return layers
