"""Rows: batches on the device are the CPU's."""

import contextlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loader import Loader
from ffcv_train.data.loading import beton_loader
from ffcv_train.data.loading.device_decode import check_decoder
from ffcv_train.data.loading.plan import Order
from ffcv_train.doctor.gpu.bench import CPU, Bench
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, distance
from ffcv_train.system.errors import UserError

BATCH = 32
_SIDES = (96, 128, 96)
_DECODERS_APART = 2.0
_LONG_KERNEL = 60_000_000  # cycles: about 40 ms, so that batches are made faster than the stream reads them


def beton_batches(bench: Bench) -> list[Figure]:
    """From .beton, by the page cache and by pages, while the step's stream is busy."""
    return [*_compared(bench, bench.beton, "random"), *_compared(bench, bench.beton, "quasi_random")]


def image_file_batches(bench: Bench) -> list[Figure]:
    """From image files, and centre crops of them."""
    return [*_compared(bench, bench.images, "random"), *_compared(bench, bench.images, "sequential")]


def decoded_on_device(bench: Bench) -> list[Figure]:
    """Batches of `data.decode=device` beside the host's: the same samples, pixels as far apart as two decoders'."""
    try:
        check_decoder(bench.device)
    except UserError as error:
        raise NotJudged(str(error)) from None
    batches = _decoded(bench, "device")
    wanted = _decoded(bench, "host")
    means, others = [], 0
    for (images, labels, indices), (images_2, labels_2, indices_2) in zip(batches, wanted, strict=True):
        others += not (torch.equal(labels, labels_2) and torch.equal(indices, indices_2))
        # Of each image, for a crop that is another one is tens of levels apart.
        apart = (images.double() - images_2.double()).abs().mean(dim=(1, 2, 3))
        means.append(distance(apart, torch.zeros_like(apart)))
    return [
        Figure("batches of other samples", others, most=0),
        Figure("an image's mean difference, levels of 255", max(means), most=_DECODERS_APART),
    ]


def _decoded(bench: Bench, decode: Literal["host", "device"]) -> list[tuple[Tensor, ...]]:
    loader = beton_loader.BetonLoader(
        open_beton(bench.beton),
        BATCH,
        crop=RandomResizedCrop(),
        resolution=max(_SIDES),
        device=bench.device,
        order="random",
        num_workers=2,
        decode=decode,
    )
    with contextlib.closing(loader):
        return [(batch.images.cpu(), batch.labels.cpu(), batch.indices.cpu()) for batch in loader.epoch()]


def _compared(bench: Bench, data_set: Path, order: Order) -> list[Figure]:
    wanted, found = _read(CPU, data_set, order, 1), _read(bench.device, data_set, order, 2)
    differing = sum(not all(map(torch.equal, mine, theirs)) for mine, theirs in zip(found, wanted, strict=False)) + abs(
        len(found) - len(wanted)
    )
    return [Figure(f"{order}: batches", len(found), least=2 * len(_SIDES)), Figure("that differ", differing, most=0)]


def _read(device: torch.device, data_set: Path, order: Order, workers: int) -> list[tuple[Tensor, ...]]:
    """Epochs of different sides, each batch read behind a kernel that takes longer than to make it."""
    crop = CenterCrop() if order == "sequential" else RandomResizedCrop()
    kept = []
    with Loader(
        data_set, BATCH, crop=crop, resolution=max(_SIDES), device=device, order=order, num_workers=workers, seed=7
    ) as loader:
        for side in _SIDES:
            loader.set_resolution(side)
            for batch in loader:
                if device.type == "cuda":
                    torch.cuda._sleep(_LONG_KERNEL)
                kept.append((batch.images.clone(), batch.labels.clone(), batch.indices.clone()))
    return [tuple(tensor.cpu() for tensor in tensors) for tensors in kept]
