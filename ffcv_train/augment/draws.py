"""Random numbers for a batch: a stream per (seed, epoch, key, purpose), whoever asks and in whatever order.

SplitMix64 as in `data/kernels/random.py`, for whole batches in NumPy.
"""

import numpy as np
import torch
from scipy.special import betaincinv

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = (np.uint64(n) for n in (27, 30, 31, 11))

POLICY, ERASING, NOISE, MIXING = range(1, 5)
"""Purposes: each draws from streams of its own"""


def stream_starts(seed: int, epoch: int, keys: np.ndarray, purpose: int) -> np.ndarray:
    """The state, uint64 [B], of each sample's stream; `keys` int64 [B] as in `Batch.keys`."""
    state = np.full(len(keys), seed, np.uint64)
    for number in (np.uint64(epoch), keys.astype(np.uint64), np.uint64(purpose)):
        state = _mixed(state + _GAMMA) ^ number
    return _mixed(state + _GAMMA)


def uniforms(seed: int, epoch: int, keys: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """float64 [B, count], uniform in [0, 1) with 53 random bits."""
    steps = _GAMMA * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mixed(stream_starts(seed, epoch, keys, purpose)[:, None] + steps)
    return (bits >> _S11).astype(np.float64) * 2.0**-53


def beta(uniform: np.ndarray, concentration: float) -> np.ndarray:
    """Numbers of Beta(concentration, concentration) from uniform ones, by the inverse distribution function."""
    return betaincinv(concentration, concentration, uniform)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on `device` that the host does not wait for."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
