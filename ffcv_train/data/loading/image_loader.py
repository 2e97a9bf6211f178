"""Batches from image files: torch DataLoader's worker processes behind the interface of `loader.Loader`."""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loading.archive_cache import ArchiveCache
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.image_worker import Failure, ImageFiles, SampleKey, collate, set_up_worker
from ffcv_train.data.loading.image_workers import ImageWorkers
from ffcv_train.data.loading.plan import EpochPlan
from ffcv_train.data.loading.transfer import Transfer
from ffcv_train.data.loading.views import Views, batch_of, tensors_of, views_of
from ffcv_train.data.loading.waiting import Wait, never
from ffcv_train.data.sources.image_set import ImageSet, archive_of
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.system.watch import at


class ImageLoader:
    """Iterates over one epoch of an `ImageSet` at a time, as `loader.Loader` does over a .beton.

    Order, batches, crops and flips are the same functions of (seed, epoch, key) as there; so are the pixels, but for
    what a .beton's own compression changes. `augment` is given for training: its policy is applied in the workers,
    drawn from (seed, epoch, key). With `cache` the archive is held in memory, once per machine. With `views` (see
    `views_of`) batches are `ViewBatch`es.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        crop: RandomResizedCrop | CenterCrop | None,
        resolution: int | None,
        process: Process,
        num_workers: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        batches_ahead: int = 3,
        cache: bool = False,
        weights: np.ndarray | None = None,
        views: int | Sequence[tuple[int, RandomResizedCrop]] | None = None,
        boxes: bool = False,
    ) -> None:
        self._images = images
        self._plan = _plan_of(images, batch_size, process, augment, seed, weights)
        self._views = views_of(crop, resolution, views, boxes)
        self._transfer = Transfer(process.device) if process.device.type == "cuda" else None
        self._epoch, self._first_batch = 0, 0
        self._busy = False
        self.wait_seconds = 0.0
        """Time that the consumer has spent waiting for batches since the loader was made."""
        archive = archive_of(images)
        self._cache = ArchiveCache(archive, process) if cache and archive is not None else None
        path = self._cache.path if self._cache is not None else ""
        self._sampler = _BatchSampler()
        self._workers = ImageWorkers(
            ImageFiles(images, self._views, augment, seed, path),
            batch_sampler=self._sampler,
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=set_up_worker,
            prefetch_factor=max(2, -(-batches_ahead // num_workers)),
            persistent_workers=True,
            pin_memory=process.device.type == "cuda",
            multiprocessing_context="fork",  # the list of files is shared, not copied
            generator=torch.Generator(),  # its seeds for the workers must not move the trainer's generator
        )

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        return len(self._plan)

    @property
    def cache_bytes(self) -> int:
        """What the cached archive holds of this machine's memory, once for all ranks; 0 without a cache."""
        return Path(self._cache.path).stat().st_blocks * 512 if self._cache is not None else 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """What the next iteration yields: epoch `epoch` from its batch `first_batch` on."""
        self._epoch, self._first_batch = epoch, first_batch

    def set_resolution(self, resolution: int) -> None:
        """The side in pixels of the images of later iterations."""
        self._views = self._views.at(resolution)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def epoch(self, give_up: Callable[[], bool] = never) -> Generator[Batch, None, None]:
        """The batches of the epoch; `close` it when leaving early.

        Raises `NoBatchError` where `give_up()` becomes true while no batch comes.
        """
        if self._busy:
            raise RuntimeError("this loader is being iterated already; finish or close that iteration first")
        self._busy = True
        try:
            batches = self._plan.batches(self._epoch, self._first_batch)
            views = self._views
            self._sampler.set(batches, self._epoch, views.sides)
            staged: tuple[Batch, torch.cuda.Event | None] | None = None
            wait = Wait(self._images.path, give_up)
            results = self._workers.batches(wait)
            for keys in batches:
                made = next(results)
                self.wait_seconds += wait.seconds
                at()
                if isinstance(made, Failure):
                    raise UserError(made.sentence)
                fresh = self._to_device(made, keys, views)
                if self._transfer is None:
                    yield fresh[0]
                else:
                    # The copy of one batch runs on its stream while the step works on the one before.
                    if staged is not None:
                        yield self._handed_over(*staged)
                    staged = fresh
                wait = Wait(self._images.path, give_up)
                self._workers.wait_as(wait)
            if staged is not None:
                yield self._handed_over(*staged)
        finally:
            self._busy = False

    def close(self) -> None:
        """End the workers and let go of the cache; the loader cannot be used again."""
        self._workers.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _to_device(
        self, made: list[torch.Tensor], keys: np.ndarray, views: Views
    ) -> tuple[Batch, torch.cuda.Event | None]:
        indices = keys % len(self._images)
        pixels, *told = made
        tensors = [pixels, torch.from_numpy(self._images.labels[indices]), torch.from_numpy(indices), *told]
        copied = None
        if self._transfer is not None:
            # What workers made is pinned already, by DataLoader's thread.
            tensors, copied = self._transfer.send([t.pin_memory() for t in tensors])
        return batch_of(views, keys, *tensors), copied

    def _handed_over(self, batch: Batch, copied: torch.cuda.Event | None) -> Batch:
        if self._transfer is not None and copied is not None:
            self._transfer.receive(tensors_of(batch), copied)
        return batch


def _plan_of(
    images: ImageSet,
    batch_size: int,
    process: Process,
    augment: AugmentConfig | None,
    seed: int,
    weights: np.ndarray | None,
) -> EpochPlan:
    """The plan of training, where there is an `augment`, or of every sample once; raises as `check_length` does."""
    plan = EpochPlan(
        len(images),
        batch_size,
        "random" if augment is not None else "sequential",
        seed,
        process.rank,
        process.world_size,
        augment.repeats if augment is not None else 1,
        weights=weights,
    )
    plan.check_length(images.path)
    return plan


class _BatchSampler:
    """The batches of the next iteration, as DataLoader asks a sampler for them."""

    def __init__(self) -> None:
        self.set([], 0, np.empty(0, np.int64))

    def set(self, batches: list[np.ndarray], epoch: int, sides: np.ndarray) -> None:
        self._batches, self._epoch, self._sides = batches, epoch, sides

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Made as they are asked for: an epoch of ImageNet would be a hundred megabytes of them.
        batches, epoch, sides = self._batches, self._epoch, self._sides
        return ([SampleKey(key, epoch, sides) for key in keys.tolist()] for keys in batches)

    def __len__(self) -> int:
        return len(self._batches)
