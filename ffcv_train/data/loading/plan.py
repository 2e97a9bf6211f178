"""Which samples an epoch visits, in which batches: a function of (seed, epoch, rank, world size), for both loaders."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ffcv_train.system.errors import UserError

Order = Literal["random", "quasi_random", "sequential"]


@dataclass(frozen=True)
class EpochPlan:
    """The batches of this rank in every epoch.

    `order` is "random" (uniformly), "quasi_random" (whole pages, `window` of them mixed; `pages`, int64 [N], is where
    each sample lies) or "sequential" (every sample once, in file order: the last batch may be smaller and ranks may
    differ by one sample). The first two yield full global batches only. `repeats`: crops of a sample in a row.
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

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        if self.order == "sequential":
            return -(-len(range(self.rank, self.num_samples, self.world_size)) // self.batch_size)
        return self.num_samples // (self.batch_size * self.world_size)

    def batches(self, epoch: int, first: int = 0) -> list[np.ndarray]:
        """Keys of the samples (int64 [B]; the sample is key % N) of each batch of `epoch`, from batch `first` on."""
        size, rank, world_size = self.batch_size, self.rank, self.world_size
        if self.order == "sequential":
            return every_sample_batches(self.num_samples, size, rank, world_size)[first:]
        if self.order == "quasi_random":
            assert self.pages is not None
            order, cut = quasi_random_order(self.pages, self.window, self.seed, epoch), contiguous_batches
        else:
            order, cut = random_order(self.num_samples, self.seed, epoch), interleaved_batches
        if self.repeats > 1:
            return repeated_batches(order, self.repeats, size, rank, world_size)[first:]
        return cut(order, size, rank, world_size)[first:]

    def check_length(self, path: object) -> None:
        """Raise `UserError` where training on the data set at `path` would not fill one global batch."""
        if self.order != "sequential" and not len(self):
            raise UserError(
                f"{path} has {self.num_samples} samples, fewer than one global batch of "
                f"{self.batch_size * self.world_size}; lower --training.batch_size"
            )


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
