"""The loader of training loops that are not ours: any data set, an epoch per iteration."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast, get_args, overload

import numpy as np
import torch

from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loading.batch import Batch, ViewBatch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.loading.plan import Order
from ffcv_train.data.open import DataSet, open_data_set
from ffcv_train.data.sources.image_set import ImageSet
from ffcv_train.system.distributed import Process, choose_device, local_process, share_of_cores
from ffcv_train.system.errors import speaking_of_arguments

AnyBatch = TypeVar("AnyBatch", bound=Batch | ViewBatch)
View = tuple[int, RandomResizedCrop]


class Loader(Generic[AnyBatch]):
    """Batches of decoded, cropped images on a device; every iteration is the next epoch.

    - `data_set`: what `open_data_set` returned, or a path for it.
    - `batch_size`: images per batch of this process.
    - `crop`: `RandomResizedCrop` or `CenterCrop`; `resolution`: the side of the images in pixels.
    - `device`: "cpu", "cuda", "cuda:1" or a `torch.device`; None is the current GPU, or the CPU where there is none.
    - `order`: "random"; "quasi_random" (.beton only: whole pages, for files larger than memory); "sequential" (every
      sample once, the last batch may be smaller). None is "random" for random crops and "sequential" for centre crops.
      The first two yield full batches only.
    - `num_workers`: decoding threads (processes for zip and folder); None is this process's share of the cores.
    - `seed`: crops, flips and order are functions of (seed, epoch, sample), whatever the workers and ranks.
    - `rank`, `world_size`: this process's part of the data; None asks `torch.distributed`, if it is initialised.
    - `batches_ahead`: batches decoded ahead of the consumer. `repeats`: crops of a sample in a row, for training.
    - `cache`: hold a zip archive in memory, once per machine.
    - `weights`: a number of at least 0 per sample, array-like [N]; the first two orders draw as many samples an epoch
      as have one above 0, each in proportion. None draws every sample once.
    - `views`: several random crops of each sample from one decode, in batches that are `ViewBatch`es. A number makes
      so many of `crop` and `resolution`, of which the first is that without `views` to the bit; a list of (resolution,
      crop), such as `[(224, large)] * 2 + [(96, small)] * 6`, stands for `crop` and `resolution`, which stay out.
    - `boxes`: tell each view's crop and flip in the batch.

    As with PyTorch's loaders, `len` is the number of batches of an epoch. A new iteration ends one that is under way,
    whose consumer gets a `RuntimeError`. `close` it, or use it as a context manager, to end threads and let go of the
    file before the loader itself goes. Raises `TypeError` and `ValueError` naming the argument that is wrong, and
    `UserError` for what is wrong with the data.

    >>> with Loader("train.beton", 32, crop=RandomResizedCrop(), resolution=24, device="cpu") as loader:
    ...     for images, labels, *_ in loader:
    ...         pass
    >>> len(loader), images.shape, images.dtype, labels.shape
    (3, torch.Size([32, 3, 24, 24]), torch.uint8, torch.Size([32]))

    >>> with Loader("train.beton", 32, crop=RandomResizedCrop(), resolution=24, device="cpu", views=2) as loader:
    ...     for images, labels, *_ in loader:
    ...         first, second = images.unbind(1)
    >>> images.shape, first.shape
    (torch.Size([32, 2, 3, 24, 24]), torch.Size([32, 3, 24, 24]))
    """

    @overload
    def __init__(
        self: "Loader[ViewBatch]",
        data_set: DataSet | str | Path,
        batch_size: int,
        *,
        crop: RandomResizedCrop | None = None,
        resolution: int | None = None,
        device: torch.device | str | None = None,
        order: Order | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        batches_ahead: int = 3,
        repeats: int = 1,
        cache: bool = False,
        weights: Sequence[float] | np.ndarray | None = None,
        views: int | Sequence[View],
        boxes: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self: "Loader[Batch]",
        data_set: DataSet | str | Path,
        batch_size: int,
        *,
        crop: RandomResizedCrop | CenterCrop,
        resolution: int,
        device: torch.device | str | None = None,
        order: Order | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        batches_ahead: int = 3,
        repeats: int = 1,
        cache: bool = False,
        weights: Sequence[float] | np.ndarray | None = None,
        views: None = None,
    ) -> None: ...

    def __init__(
        self,
        data_set: DataSet | str | Path,
        batch_size: int,
        *,
        crop: RandomResizedCrop | CenterCrop | None = None,
        resolution: int | None = None,
        device: torch.device | str | None = None,
        order: Order | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        batches_ahead: int = 3,
        repeats: int = 1,
        cache: bool = False,
        weights: Sequence[float] | np.ndarray | None = None,
        views: int | Sequence[View] | None = None,
        boxes: bool = False,
    ) -> None:
        data_set = _opened(data_set)
        _check_counts(batch_size=batch_size, batches_ahead=batches_ahead, repeats=repeats)
        views = _checked_views(views, crop, resolution, boxes)
        if num_workers is not None:
            _check_counts(num_workers=num_workers)
        order = _checked_order(order, crop, repeats)
        drawn = None if weights is None else _checked_weights(weights, len(data_set), order)
        process = local_process(choose_device(device), rank, world_size)

        self.data_set = data_set
        self.batch_size = batch_size
        self._next = (0, 0)
        self._listed = isinstance(views, list)
        self._running: Generator[Batch, None, None] | None = None
        with speaking_of_arguments():
            self._loader = _loader_of(
                data_set,
                process,
                order,
                repeats,
                cache,
                batch_size=batch_size,
                crop=crop,
                resolution=resolution,
                num_workers=num_workers or share_of_cores(process),
                seed=seed,
                batches_ahead=batches_ahead,
                weights=drawn,
                views=views,
                boxes=boxes,
            )

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[AnyBatch]:
        """The batches of the next epoch: 0 at first, then one more each time, or what `set_epoch` said."""
        if self._running is not None:
            self._running.close()
        epoch, first_batch = self._next
        self._next = (epoch + 1, 0)
        self._loader.set_epoch(epoch, first_batch)
        batches = self._running = self._loader.epoch()
        return self._batches(batches)

    def _batches(self, batches: Generator[Batch, None, None]) -> Generator[AnyBatch, None, None]:
        with contextlib.closing(batches), speaking_of_arguments():
            self._check_running(batches)
            for batch in batches:
                yield cast(AnyBatch, batch)
                self._check_running(batches)

    def _check_running(self, batches: Generator[Batch, None, None]) -> None:
        if self._running is not batches:
            raise RuntimeError("this loader has begun another iteration, or was closed; this one cannot go on")

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The next iteration is epoch `epoch`, from its batch `first_batch` on; later ones count on from there."""
        self._next = (epoch, first_batch)

    def set_resolution(self, resolution: int) -> None:
        """The side in pixels of the images of later iterations; recompiles nothing."""
        _check_counts(resolution=resolution)
        if self._listed:
            raise ValueError(f"resolution={resolution}, but the views in the list have resolutions of their own")
        self._loader.set_resolution(resolution)

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer has spent waiting for decoded batches since the loader was made."""
        return self._loader.wait_seconds

    def close(self) -> None:
        """End all threads and processes and let go of the file; the loader cannot be used again."""
        if self._running is not None:
            self._running.close()
            self._running = None
        self._loader.close()

    def __enter__(self) -> "Loader[AnyBatch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _opened(data_set: DataSet | str | Path) -> DataSet:
    if isinstance(data_set, str | Path):
        return open_data_set(data_set)
    if not isinstance(data_set, Beton | ImageSet):
        raise TypeError(f"data_set must be a path or what open_data_set returned, not {type(data_set).__name__}")
    return data_set


def _loader_of(
    data_set: DataSet, process: Process, order: Order, repeats: int, cache: bool, **shared: Any
) -> BetonLoader | ImageLoader:
    """The loader for what `data_set` is; `shared` are the arguments that both take alike."""
    if isinstance(data_set, Beton):
        if cache:
            raise ValueError(f"cache holds zip archives in memory, and {data_set.path} is a .beton file")
        return BetonLoader(
            data_set,
            device=process.device,
            order=order,
            rank=process.rank,
            world_size=process.world_size,
            repeats=repeats,
            **shared,
        )
    if order == "quasi_random":
        raise ValueError(f"order=quasi_random is for .beton files, and {data_set.path} is none")
    augment = AugmentConfig(repeats=repeats) if order == "random" else None
    return ImageLoader(data_set, process=process, augment=augment, cache=cache, **shared)


def _checked_order(order: Order | None, crop: RandomResizedCrop | CenterCrop | None, repeats: int) -> Order:
    if order is None:
        order = "sequential" if isinstance(crop, CenterCrop) else "random"
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {order!r}")
    if repeats > 1 and order == "sequential":
        raise ValueError(f"repeats={repeats} is for training, and order is sequential; leave it at 1")
    return order


def _checked_weights(weights: Sequence[float] | np.ndarray, num_samples: int, order: Order) -> np.ndarray:
    if order == "sequential":
        raise ValueError("weights are for training, and order is sequential; leave them out")
    found = np.asarray(weights, np.float64)
    if found.shape != (num_samples,):
        raise ValueError(f"weights must be one number for each of the {num_samples} samples, not {list(found.shape)}")
    if not (np.isfinite(found) & (found >= 0)).all() or not found.any():
        raise ValueError("weights must be finite numbers of at least 0, not all of them 0")
    return found


def _checked_views(
    views: int | Sequence[View] | None, crop: RandomResizedCrop | CenterCrop | None, resolution: int | None, boxes: bool
) -> int | list[View] | None:
    if boxes and views is None:
        raise ValueError("boxes=True tells the crops of views; give views=1 for those of one")
    if views is not None and not isinstance(views, int):
        return _checked_list(views, crop, resolution)
    if views is not None:
        _check_counts(views=views)
        if isinstance(crop, CenterCrop):
            raise ValueError(f"views={views} are random crops, and crop is a CenterCrop; give a RandomResizedCrop")
    if not isinstance(crop, RandomResizedCrop | CenterCrop):
        raise TypeError(f"crop must be a RandomResizedCrop or a CenterCrop, not {crop!r}")
    _check_counts(resolution=resolution)
    return views


def _checked_list(
    views: Sequence[View], crop: RandomResizedCrop | CenterCrop | None, resolution: int | None
) -> list[View]:
    if crop is not None or resolution is not None:
        name = "crop" if crop is not None else "resolution"
        raise ValueError(f"views lists a resolution and a crop for each; leave {name} out")
    if not isinstance(views, Sequence) or isinstance(views, str) or not views:
        raise TypeError(f"views must be a number, or a list of (resolution, crop), not {views!r}")
    for place, view in enumerate(views):
        if not isinstance(view, tuple | list) or len(view) != 2 or not isinstance(view[1], RandomResizedCrop):
            raise TypeError(f"views[{place}] must be (resolution, RandomResizedCrop), not {view!r}")
        _check_counts(**{f"views[{place}][0]": view[0]})
    return list(views)


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
