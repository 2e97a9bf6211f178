"""The loaders that are compared: each yields uint8 batches [B, 3, R, R] of random resized crops, half of them flipped.

A contender is a function of (data, resolution, batch size, workers) that returns a function which iterates over one
epoch. What it needs is imported within, so that a process of one contender bears only that one's imports.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Epoch = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Files:
    """The same photographs in the forms that the contenders read."""

    beton: Path
    """As our writer makes it."""
    plain_beton: Path
    """Without restart markers, as FFCV's writer makes it."""
    level_beton: Path
    """As our writer makes it with a smaller level behind each image."""
    images: Path
    """Its JPEGs as files, <label>/<index>.jpg; of the mode jpg only."""
    shards: Path
    """Its JPEGs in tar shards; of the mode jpg only."""


def ours(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """This project's loader on its own file."""
    return _ours(files.beton, resolution, batch_size, workers)


def ours_plain(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """This project's loader on a file without restart markers."""
    return _ours(files.plain_beton, resolution, batch_size, workers)


def ours_level(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """This project's loader on a file with a smaller level behind each image."""
    return _ours(files.level_beton, resolution, batch_size, workers)


def _ours(beton: Path, resolution: int, batch_size: int, workers: int) -> Epoch:
    import torch

    from ffcv_train.data.format.beton import open_beton
    from ffcv_train.data.kernels.crops import RandomResizedCrop
    from ffcv_train.data.loading.beton_loader import BetonLoader

    loader = BetonLoader(
        open_beton(beton),
        batch_size,
        crop=RandomResizedCrop(),
        resolution=resolution,
        device=torch.device("cpu"),
        order="random",
        num_workers=workers,
    )
    number = 0

    def epoch() -> Iterator[Any]:
        nonlocal number
        loader.set_epoch(number)
        number += 1
        with contextlib.closing(loader.epoch()) as batches:
            for batch in batches:
                yield batch.images

    return epoch


def ffcv(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """Stock FFCV, with the operations of its ImageNet example."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    image = [RandomResizedCropRGBImageDecoder((resolution, resolution)), RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        str(files.plain_beton),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": [*image, ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    return lambda: (images for images, _ in loader)


def torchvision(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """torchvision's `decode_jpeg` and v2 transforms in a DataLoader's worker processes."""
    import torch
    from torchvision.datasets.folder import DatasetFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(resolution, antialias=True), v2.RandomHorizontalFlip()])

    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)

    return _data_loader(DatasetFolder(str(files.images), load, ("jpg",), transform), batch_size, workers)


def pillow(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """Pillow and torchvision's transforms in a DataLoader's worker processes, as in PyTorch's ImageNet example."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(resolution), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    return _data_loader(ImageFolder(str(files.images), v2.Compose(steps)), batch_size, workers)


def _data_loader(data: Any, batch_size: int, workers: int) -> Epoch:
    from torch.utils.data import DataLoader

    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def webdataset(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """webdataset's tar shards, decoded by torchvision, in a DataLoader's worker processes."""
    import numpy as np
    import torch
    import webdataset as wds
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(resolution, antialias=True), v2.RandomHorizontalFlip()])

    def load(data: bytes) -> torch.Tensor:
        stored = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        return transform(decode_jpeg(stored, mode=ImageReadMode.RGB))

    shards = sorted(str(path) for path in files.shards.glob("*.tar"))
    data = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).to_tuple("jpg", "cls")
    # A worker's last batch may be smaller: without it, images would be decoded that nobody counts.
    data = data.map_tuple(load, int).batched(batch_size, partial=True)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def dali(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """NVIDIA DALI's decoder and operations on the CPU."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    @pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        stored, labels = fn.readers.file(file_root=str(files.images), random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(stored, device="cpu", random_area=[0.08, 1.0])
        images = fn.resize(images, size=[resolution, resolution], antialias=True)
        flip = fn.random.coin_flip(probability=0.5)
        images = fn.crop_mirror_normalize(images, mirror=flip, dtype=types.UINT8, output_layout="CHW")
        return images, labels

    made = pipeline()
    made.build()
    iterator = DALIClassificationIterator(
        made, reader_name="files", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    return lambda: (batch[0]["data"] for batch in iterator)


def spdl(files: Files, resolution: int, batch_size: int, workers: int) -> Epoch:
    """SPDL's threads with its own decoder, FFmpeg, whose filters crop, mirror and resize."""
    import math
    import random

    from spdl import io
    from spdl.pipeline import PipelineBuilder

    io.utils.set_ffmpeg_log_level(8)  # without a line for each JPEG's pixel format
    paths = sorted(str(path) for path in files.images.glob("*/*.jpg"))

    def load(path: str) -> Any:
        packets = io.demux_image(path)
        crop = ":".join(map(str, draw(packets.width, packets.height)))
        mirror = "hflip," if random.random() < 0.5 else ""
        scale = f"scale={resolution}:{resolution}:flags=bilinear"
        return io.decode_packets(packets, filter_desc=f"crop={crop},{mirror}{scale},format=pix_fmts=rgb24")

    def draw(width: int, height: int) -> tuple[int, int, int, int]:
        """Width, height, left and top of a crop as torchvision's RandomResizedCrop draws it."""
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1.0)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return w, h, random.randint(0, width - w), random.randint(0, height - h)
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return w, h, (width - w) // 2, (height - h) // 2

    def collate(frames: list[Any]) -> Any:
        return io.to_torch(io.convert_frames(frames)).permute(0, 3, 1, 2)

    def epoch() -> Iterator[Any]:
        builder = PipelineBuilder().add_source(random.sample(paths, len(paths)))
        builder = builder.pipe(load, concurrency=workers).aggregate(batch_size, drop_last=True).pipe(collate)
        pipeline = builder.add_sink(2).build(num_threads=workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


PLAIN, LEVEL = "ours-no-tiles", "ours-level"
CONTENDERS: dict[str, Callable[[Files, int, int, int], Epoch]] = {
    "ours": ours,
    LEVEL: ours_level,
    PLAIN: ours_plain,
    "ffcv": ffcv,
    "torchvision": torchvision,
    "webdataset": webdataset,
    "pillow": pillow,
    "dali": dali,
    "spdl": spdl,
}
OURS = ("ours", LEVEL, PLAIN)
BETON_READERS = (*OURS, "ffcv")
"""Those that read raw samples too."""
_NEEDS = {"dali": "nvidia.dali", "spdl": "spdl.io"}


def available() -> list[str]:
    """The contenders whose packages are installed."""
    return [name for name in CONTENDERS if name not in _NEEDS or _installed(_NEEDS[name])]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
