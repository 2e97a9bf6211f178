"""Counter-based random numbers for numba: a stream per (seed, epoch, sample, view), whoever asks and in whatever order.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np

from ffcv_train.data.kernels.compile_cache import compiled

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32), np.uint64(11)


@compiled(nogil=True)
def next_u64(state: np.ndarray) -> np.uint64:
    """The next 64 random bits; `state` is a uint64 array of one element, advanced in place."""
    state[0] += _GAMMA
    z = state[0]
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@compiled(nogil=True)
def uniform(state: np.ndarray, low: float, high: float) -> float:
    """The next number, uniform in [low, high), with 53 random bits."""
    return low + (high - low) * (np.float64(next_u64(state) >> _S11) * (1.0 / 9007199254740992.0))


@compiled(nogil=True)
def seed_stream(state: np.ndarray, seed: int, epoch: int, sample: int, view: int = 0) -> None:
    """Put `state` at the start of the stream of (seed, epoch, sample, view), each a non-negative integer.

    Each number is hashed before the next is mixed in, so that neighbouring keys give unrelated streams.
    """
    state[0] = np.uint64(seed)
    state[0] = next_u64(state) ^ np.uint64(epoch)
    state[0] = next_u64(state) ^ np.uint64(sample)
    if view > 0:
        # In the upper half: the lower numbers are the purposes of the policies (augment/draws.py).
        state[0] = next_u64(state) ^ (np.uint64(view) << _S32)
    state[0] = next_u64(state)
