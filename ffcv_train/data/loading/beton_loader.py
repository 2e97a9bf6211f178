"""Batches of decoded images from a .beton file, on the device, decoded ahead by threads.

FFCV gives the file format and the native JPEG decoder; order, randomness, buffers, errors and hand-over to the device
are ours (docs/architecture.md says why).
"""

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import torch

from ffcv_train.augment.draws import to_device
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop, draw_boxes
from ffcv_train.data.kernels.decode import BAD_JPEG, Scratch, decode_samples, problem_of
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.kernels.pieces import FIELDS, cut_samples, cutting_scratch
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.device_decode import DamagedSampleError, check_decoder, decode_batch
from ffcv_train.data.loading.pages import PageCache
from ffcv_train.data.loading.plan import EpochPlan, Order, distinct_pages
from ffcv_train.data.loading.source_file import SourceFile
from ffcv_train.data.loading.threads import Threads
from ffcv_train.data.loading.transfer import Transfer
from ffcv_train.data.loading.views import Views, batch_of, tensors_of, views_of
from ffcv_train.data.loading.waiting import POLL_SECONDS, NoBatchError, Wait, never
from ffcv_train.system.errors import UserError
from ffcv_train.system.watch import at

_CHUNK = 8  # samples per task: about 8 ms of work, so that threads finish a batch together
_ENDING_SECONDS = 5.0  # what a sample under way may take when nobody waits for it any more
_WINDOW_BATCHES = 16  # quasi-random order mixes about this many batches' pages
_WINDOW_BYTES = 2 << 30


_left_alone: list["BetonLoader"] = []
"""Loaders whose threads may still read and write: their memory must not go"""


class _Slot:
    """A host buffer for one batch, pinned where a GPU copies from it."""

    def __init__(self, batch_size: int, views: Views, pinned: bool) -> None:
        def room(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, pin_memory=pinned)

        self.pixels = room(batch_size * views.bytes_per_sample, dtype=torch.uint8)
        self.labels, self.indices = room(batch_size), room(batch_size)
        told = batch_size if views.boxes else 0
        self.boxes, self.flips = room(told, len(views.sides), 4), room(told, len(views.sides), dtype=torch.bool)
        self.copied: torch.cuda.Event | None = None


@dataclass
class _Task:
    """A batch being decoded into `target` (uint8, flat), which is a part of the slot, or on the device.

    There the last of `futures` makes the batch, and what it may be read after.
    """

    slot: _Slot | None
    target: np.ndarray | None
    keys: np.ndarray
    views: Views
    pages: np.ndarray | None
    futures: list[Future[Any]]


@dataclass
class _Cut:
    """What a task leaves for the device: pieces of JPEGs or pixels, and what they are (see `cut_samples`)."""

    content: np.ndarray
    pieces: np.ndarray


def _window(beton: Beton, batch_size: int) -> tuple[np.ndarray, int]:
    """The page that each sample lies on, and how many pages quasi-random order mixes."""
    size = beton.page_size
    pages = np.empty(len(beton), np.uint32 if beton.file_size // size < 1 << 32 else np.int64)
    np.floor_divide(beton.ptrs, size, out=pages, casting="unsafe")
    per_page = max(1.0, len(beton) / len(distinct_pages(pages)))
    most = max(4, _WINDOW_BYTES // size)
    return pages, int(min(most, max(4, _WINDOW_BATCHES * batch_size / per_page)))


def _plan_of(
    beton: Beton,
    batch_size: int,
    order: Order,
    seed: int,
    rank: int,
    world_size: int,
    repeats: int,
    weights: np.ndarray | None,
) -> EpochPlan:
    """The plan of all epochs; raises as `check_length` does."""
    pages, window = _window(beton, batch_size) if order == "quasi_random" else (None, 1)
    plan = EpochPlan(len(beton), batch_size, order, seed, rank, world_size, repeats, pages, window, weights)
    plan.check_length(beton.path)
    return plan


def _checked_device_crop(
    crop: RandomResizedCrop | CenterCrop | None,
    views: int | Sequence[tuple[int, RandomResizedCrop]] | None,
    device: torch.device,
) -> RandomResizedCrop:
    """`crop`, where `device` can decode for it; raises `ValueError` or what `check_decoder` does."""
    if views is not None:
        raise ValueError("decode='device' makes one view of each sample; leave decode at 'host' for views")
    if not isinstance(crop, RandomResizedCrop):
        raise ValueError("decode='device' is for random crops")
    check_decoder(device)
    return crop


class BetonLoader:
    """Iterates over one epoch at a time; see `set_epoch`.

    `order` and `repeats` are those of `EpochPlan`: "random" over the page cache, "quasi_random" for files larger than
    memory, "sequential" for evaluation. Crops, flips and order are functions of (seed, epoch, sample)
    and do not depend on threads, ranks (random order) or resuming. With `decode` "device" the threads only cut what the
    crop needs of each JPEG, and the device decodes and resizes: random crops only. With `views` (see `views_of`)
    batches are `ViewBatch`es.
    """

    def __init__(
        self,
        beton: Beton,
        batch_size: int,
        *,
        crop: RandomResizedCrop | CenterCrop | None,
        resolution: int | None,
        device: torch.device,
        order: Order,
        num_workers: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batches_ahead: int = 3,
        repeats: int = 1,
        decode: Literal["host", "device"] = "host",
        weights: np.ndarray | None = None,
        views: int | Sequence[tuple[int, RandomResizedCrop]] | None = None,
        boxes: bool = False,
    ) -> None:
        self._beton = beton
        self._views = views_of(crop, resolution, views, boxes)
        self._repeats = repeats
        self._device = device
        self._seed = seed
        self._plan = _plan_of(beton, batch_size, order, seed, rank, world_size, repeats, weights)
        self._epoch, self._first_batch = 0, 0
        self._batches_ahead = batches_ahead
        self._free: deque[_Slot] = deque()
        self._room: Views | None = None
        self._busy = threading.Lock()
        self._threads = threading.local()
        self._generation = 0
        if decode == "device":
            self._cubic = _checked_device_crop(crop, views, device).interpolation == "bicubic"
        self._pool = Threads(num_workers, "decode")
        # A thread of its own: the decoder makes whoever calls it wait.
        self._device_thread = Threads(1, "device") if decode == "device" else None
        self._stuck = False
        self._transfer = Transfer(device) if device.type == "cuda" else None
        self.wait_seconds = 0.0
        """Time that the consumer has spent waiting for decoded batches since the loader was made."""
        self._file: SourceFile | None = None
        self._content: np.ndarray | None = None
        self._page_cache: PageCache | None = None
        if order == "quasi_random":
            self._page_cache = PageCache(beton.path, beton.page_size, beton.file_size, num_workers)
        else:
            self._file = SourceFile(beton.path, beton.file_size)
            self._content = np.memmap(self._file.file, np.uint8, mode="r")
        self._compile()

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        return len(self._plan)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """What the next iteration yields: epoch `epoch` from its batch `first_batch` on."""
        self._epoch, self._first_batch = epoch, first_batch

    def set_resolution(self, resolution: int) -> None:
        """The side in pixels of the images of later iterations; recompiles nothing."""
        self._views = self._views.at(resolution)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def epoch(self, give_up: Callable[[], bool] = never) -> Generator[Batch, None, None]:
        """The batches of the epoch; `close` it when leaving early, so that decoding ends at once.

        Raises `NoBatchError` where `give_up()` becomes true while no batch comes: what the threads wait for may never
        end, so that the loader can only be closed then.
        """
        if self._stuck:
            raise UserError(f"threads of this loader still wait for {self._beton.path}; close it and make a new loader")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this loader is being iterated already; finish or close that iteration first")
        pending: deque[_Task] = deque()
        try:
            batches = self._plan.batches(self._epoch, self._first_batch)
            self._prepare(batches)
            upcoming = iter(batches)
            epoch, views = self._epoch, self._views
            staged: tuple[Batch, torch.cuda.Event | None] | None = None
            for keys in upcoming:
                pending.append(self._submit(keys, epoch, views))
                if len(pending) >= self._batches_ahead:
                    break
            while pending:
                task = pending.popleft()
                self._wait(task, give_up)
                at()
                fresh = self._to_device(task)
                following = next(upcoming, None)
                if following is not None:
                    pending.append(self._submit(following, epoch, views))
                # The copy of one batch runs on its stream while the step works on the one before.
                if staged is not None:
                    yield self._handed_over(*staged)
                staged = fresh
            if staged is not None:
                yield self._handed_over(*staged)
        except NoBatchError:
            self._stuck = True
            raise
        finally:
            self._cancel(pending)
            self._busy.release()

    def close(self) -> None:
        """End all threads and let go of the file; the loader cannot be used again.

        Threads that hang in the kernel are left to it, with the file and the buffers that they read into.
        """
        seconds = 0.0 if self._stuck else _ENDING_SECONDS
        ended = self._pool.close(seconds)
        if self._device_thread is not None:
            ended &= self._device_thread.close(seconds)
        if self._page_cache is not None:
            ended &= self._page_cache.close(seconds)
        if ended:
            self._page_cache = None
            if self._file is not None:
                self._file.close()
            self._content = None
            self._free = deque()
        else:
            _left_alone.append(self)

    def _compile(self) -> None:
        """Have the compiled loops ready before the first batch is waited for."""
        nothing = (0, np.empty(0, np.int64), np.empty(0, np.uint64))
        if self._device_thread is not None:
            self._pool.submit(self._cut, *nothing, self._views, None).result()
        else:
            self._pool.submit(self._decode, *nothing, self._views, np.empty(0, np.uint8), 0, 0, None).result()

    def _prepare(self, batches: Sequence[np.ndarray]) -> None:
        room = self._room.bytes_per_sample if self._room is not None else 0
        if self._views.bytes_per_sample > room and self._device_thread is None:
            # A new queue: smaller slots that a consumer still holds return to the old one.
            self._free = deque()
            self._room = self._views
            # One slot per batch ahead and one that a copy to the device may still read from.
            self._free.extend(self._new_slot() for _ in range(self._batches_ahead + 1))
            self._generation += 1
        if self._page_cache is not None:
            n, size = len(self._beton), self._beton.page_size
            self._page_cache.begin([np.unique(self._beton.ptrs[b % n] // size) for b in batches])

    def _new_slot(self) -> _Slot:
        assert self._room is not None
        return _Slot(self._plan.batch_size, self._room, self._device.type == "cuda")

    def _submit(self, keys: np.ndarray, epoch: int, views: Views) -> _Task:
        samples = keys % len(self._beton)
        pages, reads = None, None
        ptrs = self._beton.ptrs[samples]
        if self._page_cache is not None:
            pages = np.unique(ptrs // self._beton.page_size)
            reads = self._page_cache.acquire(pages)
            addresses = self._page_cache.addresses(ptrs)
        else:
            assert self._content is not None
            addresses = np.uint64(self._content.ctypes.data) + ptrs.astype(np.uint64)
        # Repetitions of a sample stay together, which then is decoded once.
        step = _CHUNK - _CHUNK % self._repeats or _CHUNK
        chunks = [slice(start, start + step) for start in range(0, len(samples), step)]
        if self._device_thread is not None:
            cuts = [self._pool.submit(self._cut, epoch, keys[own], addresses[own], views, reads) for own in chunks]
            made = self._device_thread.submit(self._make, cuts, keys, views)
            return _Task(None, None, keys, views, pages, [*cuts, made])
        # Slots run out only where the consumer keeps batches: a batch on the CPU is its slot.
        slot = self._free.popleft() if self._free else self._new_slot()
        if slot.copied is not None:
            slot.copied.synchronize()
        count = len(samples)
        slot.labels[:count] = torch.from_numpy(self._beton.labels[samples])
        slot.indices[:count] = torch.from_numpy(samples)
        if views.boxes:
            heights, widths = (table[samples].astype(np.int64) for table in (self._beton.heights, self._beton.widths))
            drawn = torch.from_numpy(draw_boxes(heights, widths, keys, self._seed, epoch, views.parameters))
            slot.boxes[:count], slot.flips[:count] = drawn[..., :4], drawn[..., 4] != 0
        target = slot.pixels[: count * views.bytes_per_sample].numpy()
        futures = [
            self._pool.submit(self._decode, epoch, keys[own], addresses[own], views, target, own.start, count, reads)
            for own in chunks
        ]
        return _Task(slot, target, keys, views, pages, futures)

    def _cut(
        self, epoch: int, keys: np.ndarray, addresses: np.ndarray, views: Views, reads: list[Future[Any]] | None
    ) -> _Cut:
        self._wait_for_file(reads)
        samples = self._table(addresses, keys)
        sizes = samples[1]
        cut = _Cut(np.empty(int(sizes.sum()), np.uint8), np.empty((len(keys), FIELDS)))
        position, problem = cut_samples(
            samples,
            self._seed,
            epoch,
            views.parameters[0],
            int(views.sides[0]),
            cut.content,
            cut.pieces,
            cutting_scratch(),
        )
        if position >= 0:
            self._refuse_at(addresses[position], int(keys[position]) % len(self._beton), problem)
        return cut

    def _table(self, addresses: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, ...]:
        """The `samples` of the compiled loops."""
        beton, samples = self._beton, keys % len(self._beton)
        return (
            addresses,
            beton.sizes[samples].astype(np.int64),
            beton.modes[samples],
            beton.heights[samples].astype(np.int64),
            beton.widths[samples].astype(np.int64),
            keys,
        )

    def _make(self, cuts: list[Future[Any]], keys: np.ndarray, views: Views) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch of what was cut, on the device; called by its thread."""
        found: list[_Cut] = [future.result() for future in cuts]
        samples = keys % len(self._beton)

        def action() -> list[torch.Tensor]:
            contents, pieces = [cut.content for cut in found], [cut.pieces for cut in found]
            images = decode_batch(contents, pieces, int(views.sides[0]), self._device, self._cubic)
            return [images, *(to_device(values, self._device) for values in (self._beton.labels[samples], samples))]

        try:
            tensors, done = self._transfer.make(action) if self._transfer is not None else (action(), None)
        except DamagedSampleError as error:
            self._refuse(int(samples[error.position]), problem_of(BAD_JPEG, error.jpeg))
        images, labels, indices = tensors
        return Batch(images, labels, indices, keys), done

    def _refuse_at(self, address: np.uint64, sample: int, problem: int) -> NoReturn:
        self._refuse(sample, problem_of(problem, ctypes.string_at(int(address), int(self._beton.sizes[sample]))))

    def _refuse(self, sample: int, problem: str) -> NoReturn:
        raise UserError(
            f"{self._beton.describe(sample)} {problem}; "
            f"run ffcv-train write --verify {self._beton.path} to list all such samples"
        )

    def _wait_for_file(self, reads: list[Future[Any]] | None) -> None:
        for read in reads or ():
            read.result()
        if self._file is not None:
            self._file.check()

    def _decode(
        self,
        epoch: int,
        keys: np.ndarray,
        addresses: np.ndarray,
        views: Views,
        target: np.ndarray,
        first: int,
        count: int,
        reads: list[Future[Any]] | None,
    ) -> None:
        self._wait_for_file(reads)
        scratch = self._scratch()
        position, problem = decode_samples(
            self._table(addresses, keys),
            self._seed,
            epoch,
            (views.parameters, views.sides),
            target,
            first,
            count,
            scratch.arguments,
        )
        if position >= 0:
            self._refuse_at(addresses[position], int(keys[position]) % len(self._beton), problem)

    def _scratch(self) -> Scratch:
        if getattr(self._threads, "generation", -1) != self._generation:
            beton, most = self._beton, self._beton.extent
            largest = int(self._room.sides.max()) if self._room is not None else 1
            try:
                self._threads.scratch = Scratch(
                    most.image_bytes, most.stored_bytes, most.side, largest, len(self._views.sides) * self._repeats
                )
            except MemoryError:
                sample = int(np.argmax(beton.pixels() * (beton.modes == MODE_JPG)))
                raise UserError(
                    f"{beton.describe(sample)} has {beton.widths[sample]} × {beton.heights[sample]} pixels, for "
                    f"which a thread needs more memory than there is; lower --data.num_workers, or write the data "
                    f"set again with --cfg.max_resolution"
                ) from None
            self._threads.generation = self._generation
        return self._threads.scratch

    def _wait(self, task: _Task, give_up: Callable[[], bool]) -> None:
        wait = Wait(self._beton.path, give_up)
        for future in task.futures:
            while True:
                try:
                    future.result(timeout=POLL_SECONDS)
                    break
                except FutureTimeoutError:
                    if future.done():
                        raise
                    wait.check()
        self.wait_seconds += wait.seconds
        if self._page_cache is not None and task.pages is not None:
            self._page_cache.release(task.pages)

    def _to_device(self, task: _Task) -> tuple[Batch, torch.cuda.Event | None]:
        if task.slot is None or task.target is None:
            return task.futures[-1].result()
        slot, count = task.slot, len(task.keys)
        parts = [slot.labels[:count], slot.indices[:count]]
        if task.views.boxes:
            parts += [slot.boxes[:count], slot.flips[:count]]
        if self._transfer is None:
            pixels = torch.from_numpy(task.target)
            # No copy: the slot is free again when the last tensor that shares its memory is gone.
            weakref.finalize(task.target, self._free.append, slot).atexit = False
            return batch_of(task.views, task.keys, pixels, *(part.clone() for part in parts)), None
        copies, slot.copied = self._transfer.send([slot.pixels[: task.target.size], *parts])
        self._free.append(slot)
        return batch_of(task.views, task.keys, *copies), slot.copied

    def _handed_over(self, batch: Batch, copied: torch.cuda.Event | None) -> Batch:
        if self._transfer is not None and copied is not None:
            self._transfer.receive(tensors_of(batch), copied)
        return batch

    def _cancel(self, pending: deque[_Task]) -> None:
        for task in pending:
            for future in task.futures:
                future.cancel()
        for task in pending:
            for future in task.futures:
                # A slot that a thread may still write to is lost, and so is the loader.
                self._stuck = self._stuck or not _ends(future)
            if not self._stuck and task.slot is not None:
                self._free.append(task.slot)


def _ends(future: Future[Any]) -> bool:
    try:
        future.exception(timeout=_ENDING_SECONDS)
    except CancelledError:
        pass
    except FutureTimeoutError:
        return False
    return True
