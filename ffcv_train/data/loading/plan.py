"""Which samples an epoch visits, in which batches: pure functions of (seed, epoch, rank, world size)."""

import numpy as np


def random_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random permutation of 0 … num_samples − 1 (int64), the same on every rank."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


def quasi_random_order(pages: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation (int64) that visits pages in random order and mixes the samples of about `window` pages at a time.

    `pages` (int64 [N]) is the page that each sample lies on. A sample's place is its page's rank plus a uniform number
    of [0, window), so a page is in use while at most `window` others follow it: reading stays in whole pages, memory
    bounded.
    """
    generator = np.random.default_rng((seed, epoch))
    unique, inverse = np.unique(pages, return_inverse=True)
    rank = generator.permutation(len(unique))
    return np.argsort(rank[inverse] + generator.random(len(pages)) * window, kind="stable")


def interleaved_batches(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's full batches: the n-th batches of all ranks together are the n-th global batch of `order`.

    Samples that do not fill a global batch are left out.
    """
    count = len(order) // (batch_size * world_size)
    shares = order[: count * batch_size * world_size].reshape(count, world_size, batch_size)
    return list(shares[:, rank])


def contiguous_batches(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's full batches where each rank takes one stretch of `order`, so that ranks share few pages."""
    count = len(order) // (batch_size * world_size)
    start = rank * (len(order) // world_size)
    return list(order[start : start + count * batch_size].reshape(count, batch_size))


def every_sample_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Every sample in exactly one batch of exactly one rank, in file order; the last batch may be smaller."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def repeated_batches(order: np.ndarray, repeats: int, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's full batches of keys under repeated augmentation (Hoffer et al., arXiv:1901.09335), as DeiT has it.

    Each sample of `order` (a permutation of 0 … N − 1) stands `repeats` times in a row, ranks take every
    world-size-th, and an epoch ends after N // global batch batches, so that it sees N / `repeats` samples. The key of
    a sample's r-th repetition is index + r × N: `key % N` is the sample, and each key has random numbers of its own.
    """
    n = len(order)
    count = n // (batch_size * world_size)
    needed = count * batch_size * world_size
    place = np.arange(needed)
    keys = order[place // repeats] + n * (place % repeats)
    return list(keys[rank::world_size].reshape(count, batch_size))
