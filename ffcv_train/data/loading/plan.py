"""Which samples an epoch visits, in which batches: a function of (seed, epoch, rank, world size), for both loaders."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ffcv_train.system.errors import UserError

Order = Literal["random", "quasi_random", "sequential"]

_PART = 1 << 18
"""Samples of which something is computed at a time: it stays small beside what is held of all"""


@dataclass(frozen=True)
class EpochPlan:
    """The batches of this rank in every epoch.

    `order` is "random" (uniformly), "quasi_random" (whole pages, `window` of them mixed; `pages`, integers [N], tells
    where each sample lies) or "sequential" (every sample once, in file order: the last batch may be smaller and ranks
    may differ by one sample). The first two yield full global batches only. `repeats`: crops of a sample in a row.

    `weights` (float64 [N], not negative) are for the first two orders: an epoch makes as many draws as there are
    samples above 0, each sample's share of them being its share of the weights (`weighted_draws`).
    """

    num_samples: int
    batch_size: int
    order: Order
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    repeats: int = 1
    pages: np.ndarray | None = None
    window: int = 1
    weights: np.ndarray | None = None

    @property
    def draws(self) -> int:
        """Samples that an epoch of all ranks draws, before what fills no batch is left out."""
        return self.num_samples if self.weights is None else int(np.count_nonzero(self.weights))

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        if self.order == "sequential":
            return -(-len(range(self.rank, self.num_samples, self.world_size)) // self.batch_size)
        return self.draws // (self.batch_size * self.world_size)

    def batches(self, epoch: int, first: int = 0) -> list[np.ndarray]:
        """Keys of the samples (int64 [B]; the sample is key % N) of each batch of `epoch`, from batch `first` on."""
        size, rank, world_size = self.batch_size, self.rank, self.world_size
        if self.order == "sequential":
            return every_sample_batches(self.num_samples, size, rank, world_size)[first:]
        n, seed = self.num_samples, self.seed
        keys = None if self.weights is None else weighted_draws(self.weights, seed, epoch)
        if self.order == "quasi_random":
            assert self.pages is not None
            pages = self.pages if keys is None else self.pages[keys % n]
            order, cut = quasi_random_order(pages, self.window, seed, epoch), contiguous_batches
        else:
            order, cut = random_order(self.draws, seed, epoch), interleaved_batches
        if self.repeats > 1:
            drawn = order if keys is None else keys[order]
            return list(repeated_batches(drawn, self.repeats, size, rank, world_size, n)[first:])
        # Numbers of draws become keys when they are this rank's alone: an epoch of all is large.
        own = cut(order, size, rank, world_size)[first:]
        return list(own.astype(np.int64) if keys is None else keys[own])

    def check_length(self, path: object) -> None:
        """Raise `UserError` where training on the data set at `path` would not fill one global batch."""
        if self.order != "sequential" and not len(self):
            raise UserError(
                f"{path} has {self.draws} samples, fewer than one global batch of "
                f"{self.batch_size * self.world_size}; lower --training.batch_size"
            )


def random_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random permutation of 0 … num_samples − 1, the same on every rank; uint32 where that holds them."""
    return _permutation(np.random.default_rng((seed, epoch)), num_samples)


def _permutation(generator: np.random.Generator, count: int) -> np.ndarray:
    """`generator.permutation(count)` in half the memory."""
    order = np.arange(count, dtype=np.uint32 if count <= 1 << 32 else np.int64)
    generator.shuffle(order)
    return order


def weighted_draws(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Keys (int64 [M]) of the samples that `epoch` draws, M being the number of `weights` (float64 [N]) above 0.

    Systematic resampling (Kitagawa 1996): a sample whose share of the weights is w is drawn M w times, rounded up or
    down, by chance and with that mean; equal weights draw every sample once. The key of a sample's r-th draw is
    index + r × N, so that each draw has random numbers of its own.
    """
    generator = np.random.default_rng((seed, epoch, 1))
    n, draws = len(weights), int(np.count_nonzero(weights))
    # In another order each time, or neighbours would be drawn together.
    shuffled = _permutation(generator, n)
    edges = weights[shuffled]
    last = n - 1 - int(np.argmax(edges[::-1] > 0))
    np.cumsum(edges, out=edges)
    offset, step = generator.random(), edges[-1] / draws
    keys = np.empty(draws, np.int64)
    before, start = -1, 0
    for first in range(0, draws, _PART):
        place = np.arange(first, min(first + _PART, draws))
        position = np.minimum(np.searchsorted(edges, (place + offset) * step, side="right"), last)
        begins = np.concatenate(([position[0] != before], position[1:] != position[:-1]))
        begun = np.maximum.accumulate(np.where(begins, place, start))
        keys[first : first + len(place)] = shuffled[position] + n * (place - begun)
        before, start = position[-1], begun[-1]
    return keys


def quasi_random_order(pages: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation (int64) that visits pages in random order and mixes the samples of about `window` pages at a time.

    `pages` (integers [N]) is the page that each sample lies on. A sample's place is its page's rank plus a uniform
    number of [0, window), so a page is in use while at most `window` others follow it: reading stays in whole pages,
    memory bounded.
    """
    generator = np.random.default_rng((seed, epoch))
    present = distinct_pages(pages)
    rank = generator.permutation(len(present))
    place = generator.random(len(pages))
    place *= window
    for first in range(0, len(pages), _PART):
        place[first : first + _PART] += rank[np.searchsorted(present, pages[first : first + _PART])]
    return np.argsort(place, kind="stable")


def distinct_pages(pages: np.ndarray) -> np.ndarray:
    """The different numbers of `pages`, sorted; quick where equal ones stand together, as they do in a file."""
    return np.unique(pages[np.flatnonzero(np.concatenate(([True], pages[1:] != pages[:-1])))])


def interleaved_batches(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's full batches [n, B]: the n-th batches of all ranks together are the n-th global batch of `order`.

    Samples that do not fill a global batch are left out.
    """
    count = len(order) // (batch_size * world_size)
    shares = order[: count * batch_size * world_size].reshape(count, world_size, batch_size)
    return shares[:, rank]


def contiguous_batches(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's full batches [n, B] where each rank takes one stretch of `order`, so that ranks share few pages."""
    count = len(order) // (batch_size * world_size)
    start = rank * (len(order) // world_size)
    return order[start : start + count * batch_size].reshape(count, batch_size)


def every_sample_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Every sample in exactly one batch of exactly one rank, in file order; the last batch may be smaller."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def repeated_batches(
    order: np.ndarray, repeats: int, batch_size: int, rank: int, world_size: int, num_samples: int
) -> np.ndarray:
    """This rank's full batches of keys (int64 [n, B]) under repeated augmentation, as DeiT has it.

    Hoffer et al., arXiv:1901.09335. Each key of `order` (of M draws from N samples) stands `repeats` times in a row,
    ranks take every world-size-th, and an epoch ends after M // global batch batches, so that it sees M / `repeats`
    draws. The key of a sample's r-th repetition is index + r × N: `key % N` is the sample, and each key has random
    numbers of its own.
    """
    count = len(order) // (batch_size * world_size)
    place = np.arange(rank, count * batch_size * world_size, world_size)
    drawn = order[place // repeats].astype(np.int64)
    keys = drawn % num_samples + num_samples * (drawn // num_samples * repeats + place % repeats)
    return keys.reshape(count, batch_size)
