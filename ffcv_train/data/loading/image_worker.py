"""What a worker process does with an image: read, decode, crop, resize, flip, and the policy of augmentation."""

import gc
import multiprocessing.queues
import os
import random
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ffcv_train.augment.pillow_policy import Policy, policy
from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.kernels.crops import draw_boxes
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.data.loading.views import Views
from ffcv_train.data.sources.archives import ZipBlob
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode_rgb
from ffcv_train.data.sources.image_set import ImageSet, Places


class SampleKey(NamedTuple):
    """What a worker is asked for: the images of `key` (`Batch.keys`) in an epoch; int64 [V] of views, in pixels."""

    key: int
    epoch: int
    sides: np.ndarray


class Made(NamedTuple):
    """What it makes of it."""

    images: list[np.ndarray]
    """uint8 [side, side, 3], of each view"""
    drawn: np.ndarray | None
    """int64 [1, V, 5], `draw_boxes` of it, where asked for"""


@dataclass(frozen=True)
class Failure:
    """Why an image could not be had, as a sentence."""

    sentence: str


class ImageFiles(Dataset[Any]):
    """`Made` or `Failure` for a `SampleKey`; nothing depends on the worker that does it.

    Of `views` the crops are taken, and whether boxes are told. With `archive`, members are read from that file instead
    of their own.
    """

    def __init__(
        self, images: ImageSet, views: Views, augment: AugmentConfig | None, seed: int, archive: str = ""
    ) -> None:
        self._images, self._views, self._seed = images, views, seed
        self._cut = Cutter(views.parameters)
        self._places = Places(images.source)
        self._archive = archive
        self._augment = augment
        self._policy: Policy | None = None

    def __getitem__(self, asked: SampleKey) -> Made | Failure:
        index = asked.key % len(self._images)
        try:
            return self._make(asked, index)
        except (OSError, ImageError, MemoryError) as error:
            reason = f"cannot be read: {error}" if not isinstance(error, ImageError) else str(error)
            return Failure(
                f"{self._images.describe(index)} {reason}; repair it, take it out of the data set, or convert that "
                "by ffcv-train write, whose on_error=skip leaves out and lists all such images"
            )

    def _make(self, asked: SampleKey, index: int) -> Made:
        place = self._places[index]
        if self._archive and isinstance(place, ZipBlob):
            place = place._replace(path=self._archive)
        pixels = contiguous(decode_rgb(place.read(), bgr=False))
        images = self._cut.views(pixels, asked.sides, key=asked.key, seed=self._seed, epoch=asked.epoch)
        drawn = None
        if self._views.boxes:
            height, width, key = (np.array([number]) for number in (*pixels.shape[:2], asked.key))
            drawn = draw_boxes(height, width, key, self._seed, asked.epoch, self._views.parameters)
        if self._augment is None or self._augment.policy == "none":
            return Made(images, drawn)
        self._policy = self._policy or policy(self._augment)
        _seed_generators(self._seed, asked)
        return Made([np.asarray(self._policy(Image.fromarray(image))) for image in images], drawn)


def collate(samples: list[Made | Failure]) -> list[torch.Tensor] | Failure:
    """The pixels as `batch_of` takes them, and where told boxes, int64 [B, V, 4], and flips, bool [B, V]; or the first
    failure."""
    made = []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        made.append(sample)
    views = list(zip(*(sample.images for sample in made), strict=True))
    # In shared memory from the start, so that it is not copied there on its way to the trainer.
    batch = torch.empty(0, dtype=torch.uint8)
    size = sum(image.size for view in views for image in view)
    try:
        storage = batch._typed_storage()._new_shared(size, device="cpu")
    except RuntimeError as error:
        return _no_shared_memory(error, size)
    batch = batch.new(storage).view(size)
    room = batch.numpy()
    for view in views:
        taken = len(view) * view[0].size
        np.stack(view, out=room[:taken].reshape(len(view), *view[0].shape))
        room = room[taken:]
    drawn = [sample.drawn for sample in made if sample.drawn is not None]
    if not drawn:
        return [batch]
    told = torch.from_numpy(np.concatenate(drawn))
    return [batch, told[..., :4].contiguous(), told[..., 4] != 0]


def set_up_worker(worker: int) -> None:
    """Signals are the parent's to act on: it finishes its step, and its end ends the workers.

    Pillow's warnings, which name no file, are not shown, as in conversion.
    """
    warnings.simplefilter("ignore")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    gc.freeze()  # a collection would write to every object that is shared with the parent
    # The thread that sends results drops what it cannot send, and the parent would wait for it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: Exception, result: Any) -> None:
    print(f"error: a worker process of the loader cannot send its result: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _no_shared_memory(error: Exception, size: int) -> Failure:
    reason = str(error).splitlines()[0].rstrip(". ")
    room = ""
    if "shm" in reason and os.path.isdir("/dev/shm"):  # noqa: PTH112
        disk = shutil.disk_usage("/dev/shm")
        room = f"; /dev/shm has {disk.free >> 20} of {disk.total >> 20} MiB free"
    return Failure(
        f"a worker process has no shared memory for a batch of {size / 2**20:.1f} MiB ({reason}{room}): in a container "
        "raise it (docker's shm-size, 8g say), or lower --data.num_workers or --data.batches_ahead"
    )


def _seed_generators(seed: int, asked: SampleKey) -> None:
    state = np.random.SeedSequence((seed, asked.epoch, asked.key)).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))
