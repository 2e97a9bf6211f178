"""Which operations a sample gets, and how strongly: each policy as where it comes from.

RandAugment, AutoAugment and AugMix as timm has them, TrivialAugment as torchvision, 3-Augment as DeiT III. In all of
them what comes in from outside an image is ImageNet's mean, and geometric operations are bilinear.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtri

from ffcv_train.augment import operations as ops
from ffcv_train.augment.draws import POLICY, uniforms
from ffcv_train.augment.layers import NOTHING, OPERATIONS, Layer, MixedChains, Step, apply
from ffcv_train.config.schema import AugmentConfig

__all__ = ["OPERATIONS", "RAND_AUGMENT", "Layer", "apply", "plan"]

_FULL = 10.0  # the magnitude that is the strongest
_APPLIED = 0.5  # of RandAugment's operations
_TRANSLATION = 0.45  # of the side, at full magnitude


RAND_AUGMENT = OPERATIONS[:15]
"""timm's set for `rand-…-inc1`, in which every operation is the stronger, the larger its magnitude"""


def plan(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> Sequence[Step]:
    """What `config.policy` does to the samples `keys` in `epoch`."""
    if config.policy == "none":
        return []
    return _POLICIES[config.policy](config, seed, epoch, keys)


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
        layers.append(Layer(np.where(applied < _APPLIED, operations, NOTHING), amounts.astype(np.float32)))
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


def _trivial_augment(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[Layer]:
    """torchvision's `TrivialAugmentWide` (arXiv:2103.10158): one operation, of one of 31 strengths."""
    choice, strength, sign = uniforms(seed, epoch, keys, POLICY, 3).T
    place = (choice * len(TRIVIAL_AUGMENT)).astype(np.int64)
    strengths = (strength * _BINS).astype(np.int64)
    negative = sign < 0.5
    operations, amounts = np.full(len(keys), NOTHING), np.zeros(len(keys), np.float32)
    for number, (operation, table, signed) in enumerate(TRIVIAL_AUGMENT):
        mine = place == number
        if operation is not None:
            operations[mine] = OPERATIONS.index(operation)
        values = table[strengths]
        if signed:
            values = np.where(negative, -values, values)
        if operation in _FACTORS:
            values = 1 + values
        amounts[mine] = values[mine]
    return [Layer(operations, amounts)]


_BINS = 31
_FACTORS = (ops.brightness, ops.saturation, ops.contrast, ops.sharpness)
_UNREAD = np.zeros(_BINS)
TRIVIAL_AUGMENT: tuple[tuple[ops.Operation | None, np.ndarray, bool], ...] = (
    (None, _UNREAD, False),
    (ops.shear_x, np.linspace(0, 0.99, _BINS), True),
    (ops.shear_y, np.linspace(0, 0.99, _BINS), True),
    (ops.translate_x_pixels, np.floor(np.linspace(0, 32, _BINS)), True),
    (ops.translate_y_pixels, np.floor(np.linspace(0, 32, _BINS)), True),
    (ops.rotate, np.linspace(0, 135, _BINS), True),
    (ops.brightness, np.linspace(0, 0.99, _BINS), True),
    (ops.saturation, np.linspace(0, 0.99, _BINS), True),
    (ops.contrast, np.linspace(0, 0.99, _BINS), True),
    (ops.sharpness, np.linspace(0, 0.99, _BINS), True),
    (ops.posterize, 8 - np.round(np.arange(_BINS) / ((_BINS - 1) / 6)), False),
    (ops.solarize, np.linspace(255, 0, _BINS), False),
    (ops.autocontrast, _UNREAD, False),
    (ops.equalize, _UNREAD, False),
)
"""Operation, None for none; its strengths, of enhancements less 1; whether they have a random sign"""


def _auto_augment(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[Layer]:
    """timm's `original`, the policy found for ImageNet (arXiv:1805.09501): one of 25 pairs of operations."""
    choice, *draws = uniforms(seed, epoch, keys, POLICY, 5).T
    pair = (choice * len(AUTO_AUGMENT)).astype(np.int64)
    layers = []
    for second in (0, 1):
        applied, sign = draws[2 * second : 2 * second + 2]
        operations = np.array([OPERATIONS.index(entry[second][0]) for entry in AUTO_AUGMENT])[pair]
        shares = np.array([entry[second][1] for entry in AUTO_AUGMENT])[pair]
        amounts = np.array([_original_amount(*entry[second][::2]) for entry in AUTO_AUGMENT])[pair]
        turned = np.isin(operations, [OPERATIONS.index(operation) for operation in ops.GEOMETRIC]) & (sign < 0.5)
        amounts = np.where(turned, -amounts, amounts)
        layers.append(Layer(np.where(applied < shares, operations, NOTHING), amounts.astype(np.float32)))
    return layers


def _original_amount(operation: ops.Operation, magnitude: int) -> float:
    """timm's units of AutoAugment's magnitudes, of 10: not all are the stronger, the larger the magnitude."""
    level = magnitude / _FULL
    tables: dict[ops.Operation, float] = {
        ops.posterize: int(4 * level) + 4,
        ops.solarize: min(256, int(256 * level)),
        ops.saturation: 0.1 + 1.8 * level,
        ops.contrast: 0.1 + 1.8 * level,
        ops.sharpness: 0.1 + 1.8 * level,
        ops.rotate: 30 * level,
        ops.shear_x: 0.3 * level,
    }
    return tables.get(operation, 0.0)


_Entry = tuple[ops.Operation, float, int]
AUTO_AUGMENT: tuple[tuple[_Entry, _Entry], ...] = (
    ((ops.posterize, 0.4, 8), (ops.rotate, 0.6, 9)),
    ((ops.solarize, 0.6, 5), (ops.autocontrast, 0.6, 5)),
    ((ops.equalize, 0.8, 8), (ops.equalize, 0.6, 3)),
    ((ops.posterize, 0.6, 7), (ops.posterize, 0.6, 6)),
    ((ops.equalize, 0.4, 7), (ops.solarize, 0.2, 4)),
    ((ops.equalize, 0.4, 4), (ops.rotate, 0.8, 8)),
    ((ops.solarize, 0.6, 3), (ops.equalize, 0.6, 7)),
    ((ops.posterize, 0.8, 5), (ops.equalize, 1.0, 2)),
    ((ops.rotate, 0.2, 3), (ops.solarize, 0.6, 8)),
    ((ops.equalize, 0.6, 8), (ops.posterize, 0.4, 6)),
    ((ops.rotate, 0.8, 8), (ops.saturation, 0.4, 0)),
    ((ops.rotate, 0.4, 9), (ops.equalize, 0.6, 2)),
    ((ops.equalize, 0.0, 7), (ops.equalize, 0.8, 8)),
    ((ops.invert, 0.6, 4), (ops.equalize, 1.0, 8)),
    ((ops.saturation, 0.6, 4), (ops.contrast, 1.0, 8)),
    ((ops.rotate, 0.8, 8), (ops.saturation, 1.0, 2)),
    ((ops.saturation, 0.8, 8), (ops.solarize, 0.8, 7)),
    ((ops.sharpness, 0.4, 7), (ops.invert, 0.6, 8)),
    ((ops.shear_x, 0.6, 5), (ops.equalize, 1.0, 9)),
    ((ops.saturation, 0.4, 0), (ops.equalize, 0.6, 3)),
    ((ops.equalize, 0.4, 7), (ops.solarize, 0.2, 4)),
    ((ops.solarize, 0.6, 5), (ops.autocontrast, 0.6, 5)),
    ((ops.invert, 0.6, 4), (ops.equalize, 1.0, 8)),
    ((ops.saturation, 0.6, 4), (ops.contrast, 1.0, 8)),
    ((ops.equalize, 0.8, 8), (ops.equalize, 0.6, 3)),
)
"""Each pair: operation, probability, magnitude"""


def _augmix(config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> list[MixedChains]:
    """timm's `augmix-m{magnitude}-w3` (arXiv:1912.02781): three chains of one to three operations, mixed."""
    each = 1 + 3 * _LONGEST
    draws = uniforms(seed, epoch, keys, POLICY, _CHAINS * each + _CHAINS + 1)
    chains = []
    for chain in range(_CHAINS):
        depth, *rest = draws[:, chain * each : (chain + 1) * each].T
        layers = []
        for number in range(_LONGEST):
            choice, strength, sign = rest[3 * number : 3 * number + 3]
            operations = np.array([OPERATIONS.index(op) for op in AUGMIX])[(choice * len(AUGMIX)).astype(np.int64)]
            level = np.minimum(strength * config.magnitude, _FULL) / _FULL
            amounts = _amounts(operations, level, np.where(sign < 0.5, -1.0, 1.0))
            within = number <= (depth * _LONGEST).astype(np.int64)
            layers.append(Layer(np.where(within, operations, NOTHING), amounts.astype(np.float32)))
        chains.append(layers)
    # Dirichlet(1, 1, 1) by exponential numbers, and Beta(1, 1).
    exponential = -np.log1p(-draws[:, -_CHAINS - 1 : -1])
    weights = exponential / exponential.sum(axis=1, keepdims=True)
    return [MixedChains(chains, weights.astype(np.float32), draws[:, -1].astype(np.float32))]


_CHAINS, _LONGEST = 3, 3
AUGMIX = (
    ops.autocontrast,
    ops.saturation,
    ops.contrast,
    ops.brightness,
    ops.sharpness,
    ops.equalize,
    ops.rotate,
    ops.posterize,
    ops.solarize,
    ops.shear_x,
    ops.shear_y,
    ops.translate_x,
    ops.translate_y,
)
"""timm's set for AugMix"""

_POLICIES: dict[str, Callable[[AugmentConfig, int, int, np.ndarray], Sequence[Step]]] = {
    "rand_augment": _rand_augment,
    "three_augment": _three_augment,
    "trivial_augment": _trivial_augment,
    "auto_augment": _auto_augment,
    "augmix": _augmix,
}
