"""Both loaders on the stub: are their batches the CPU's, and are they so because of what they do for it?"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import card
import torch

from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.data.loading import beton_loader as beton_loader_module
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.device_decode import decode_batch
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.open import open_data_set
from ffcv_train.system.distributed import Process

CROP = RandomResizedCrop((0.3, 1), (0.75, 1.33), 0.5, "bilinear", True)
SIDES = (32, 48, 40)
BATCH = 8
Tensors = list[tuple[torch.Tensor, ...]]
AnyLoader = BetonLoader | ImageLoader


def beton_loader(device: torch.device, in_memory: bool = True) -> BetonLoader:
    """Over photographs in a .beton."""
    order = "random" if in_memory else "quasi_random"
    beton = open_beton(card.arguments()["beton"])
    options: dict[str, Any] = {"num_workers": 2, "seed": 1, "order": order}
    return BetonLoader(beton, BATCH, crop=CROP, resolution=48, device=device, **options)


def decoding_loader(device: torch.device) -> BetonLoader:
    """Over the same, decoded on the device."""
    options: dict[str, Any] = {"num_workers": 2, "seed": 1, "order": "random", "decode": "device"}
    crop = RandomResizedCrop((0.3, 1), (0.75, 1.33), 0.5)
    return BetonLoader(open_beton(card.arguments()["beton"]), BATCH, crop=crop, resolution=48, device=device, **options)


def decode_on_the_cpu(contents: Any, pieces: Any, side: int, device: torch.device, cubic: bool) -> torch.Tensor:
    """What nvJPEG and products would have made, brought by a copy."""
    images = decode_batch(contents, pieces, side, torch.device("cpu"), cubic)
    return images if device.type == "cpu" else images.pin_memory().to(device, non_blocking=True)


def image_loader(device: torch.device) -> ImageLoader:
    """Over photographs in a folder."""
    images = open_data_set(card.arguments()["folder"], "folder")
    process = Process(0, 1, 0, 1, device)
    options: dict[str, Any] = {"num_workers": 2, "seed": 1, "augment": AugmentConfig()}
    return ImageLoader(images, BATCH, crop=CROP, resolution=48, process=process, **options)


def batches(make: Callable[[torch.device], AnyLoader], device: str) -> Tensors:
    """Three epochs of different sides, read as a step reads them: some time later, on the current stream."""
    kept: Tensors = []
    with contextlib.closing(make(torch.device(device))) as loader:
        for epoch, side in enumerate(SIDES):
            loader.set_epoch(epoch)
            loader.set_resolution(side)
            for batch in loader.epoch():
                kept.append((batch.images.clone(), batch.labels.clone(), batch.indices.clone()))
                del batch
    if device != "cpu":
        torch.cuda.synchronize()
    return [tuple(tensor.cpu().contiguous() for tensor in tensors) for tensors in kept]


def wrong(make: Callable[[torch.device], AnyLoader], right: Tensors) -> int:
    """How many batches differ from `right`."""
    found = batches(make, "cuda")
    assert len(found) == len(right)
    pairs = zip(found, right, strict=True)
    return sum(any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs)


@contextlib.contextmanager
def without(owner: type, method: str) -> Iterator[None]:
    """Plant a fault: `method` does nothing."""
    unchanged = getattr(owner, method)
    setattr(owner, method, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(owner, method, unchanged)


FAULTS = {
    "record_stream": (torch.Tensor, "record_stream"),
    "wait_event": (torch.cuda.Stream, "wait_event"),
    "event of the slot": (torch.cuda.Event, "synchronize"),
}
# A batch of image files lies in a buffer of its own that PyTorch's allocator of pinned memory guards.
LOADERS = {
    "beton": (beton_loader, tuple(FAULTS)),
    "pages": (lambda device: beton_loader(device, in_memory=False), tuple(FAULTS)),
    "device": (decoding_loader, ("record_stream", "wait_event")),
    "folder": (image_loader, ("record_stream", "wait_event")),
}

beton_loader_module.decode_batch = decode_on_the_cpu
beton_loader_module.check_decoder = lambda device: None
found: dict[str, Any] = {}
for name, (make, faults) in LOADERS.items():
    right = batches(make, "cpu")
    as_it_is, planted = {}, {}
    for order in card.ORDERS:
        card.set_order(order)
        card.reset_counters()
        as_it_is[order] = wrong(make, right)
    copies = card.counters()
    for fault in faults:
        with without(*FAULTS[fault]):
            planted[fault] = 0
            for order in ("late", "overtaking"):
                card.set_order(order)
                planted[fault] += wrong(make, right)
    waits = {key: number for key, number in copies.items() if key.startswith("wait")}
    pageable = copies.get("copy: pageable to device", 0)
    found[name] = {
        "batches": len(right),
        "as it is": as_it_is,
        "planted": planted,
        "pageable": pageable,
        "waits": waits,
        "copies": copies.get("copy: pinned to device", 0),
    }
card.report(found)
