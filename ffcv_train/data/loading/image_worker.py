"""What a worker process does with an image: read, decode, crop, resize, flip, and the policy of augmentation."""

import gc
import math
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
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.data.sources.archives import ZipBlob
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode_rgb
from ffcv_train.data.sources.image_set import ImageSet, Places


class SampleKey(NamedTuple):
    """What a worker is asked for: the image of `key` (`Batch.keys`) in an epoch, `side` pixels a side."""

    key: int
    epoch: int
    side: int


@dataclass(frozen=True)
class Failure:
    """Why an image could not be had, as a sentence."""

    sentence: str


class ImageFiles(Dataset[Any]):
    """uint8 [side, side, 3] or `Failure` for a `SampleKey`; nothing depends on the worker that does it.

    `parameters` is `crop_parameters` of the crop. With `archive`, members are read from that file instead of their own.
    """

    def __init__(
        self, images: ImageSet, parameters: np.ndarray, augment: AugmentConfig | None, seed: int, archive: str = ""
    ) -> None:
        self._images, self._seed = images, seed
        self._cut = Cutter(parameters)
        self._places = Places(images.source)
        self._archive = archive
        self._augment = augment
        self._policy: Policy | None = None

    def __getitem__(self, asked: SampleKey) -> np.ndarray | Failure:
        index = asked.key % len(self._images)
        try:
            return self._make(asked, index)
        except (OSError, ImageError, MemoryError) as error:
            reason = f"cannot be read: {error}" if not isinstance(error, ImageError) else str(error)
            return Failure(
                f"{self._images.describe(index)} {reason}; repair it, take it out of the data set, or convert that "
                "by ffcv-train write, whose on_error=skip leaves out and lists all such images"
            )

    def _make(self, asked: SampleKey, index: int) -> np.ndarray:
        place = self._places[index]
        if self._archive and isinstance(place, ZipBlob):
            place = place._replace(path=self._archive)
        pixels = contiguous(decode_rgb(place.read(), bgr=False))
        image = self._cut(pixels, asked.side, key=asked.key, seed=self._seed, epoch=asked.epoch)
        if self._augment is None or self._augment.policy == "none":
            return image
        self._policy = self._policy or policy(self._augment)
        _seed_generators(self._seed, asked)
        return np.asarray(self._policy(Image.fromarray(image)))


def collate(images: list[np.ndarray | Failure]) -> torch.Tensor | Failure:
    """uint8 [B, side, side, 3], or the first failure."""
    pixels = []
    for image in images:
        if isinstance(image, Failure):
            return image
        pixels.append(image)
    # In shared memory from the start, so that it is not copied there on its way to the trainer.
    batch = torch.empty(0, dtype=torch.uint8)
    shape = (len(pixels), *pixels[0].shape)
    try:
        storage = batch._typed_storage()._new_shared(math.prod(shape), device="cpu")
    except RuntimeError as error:
        return _no_shared_memory(error, math.prod(shape))
    batch = batch.new(storage).view(shape)
    np.stack(pixels, out=batch.numpy())
    return batch


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
