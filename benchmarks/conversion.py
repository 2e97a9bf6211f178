"""One conversion for benchmarks/writer.py, in a process of its own; prints the seconds that it took as JSON.

python -m benchmarks.conversion WRITER FOLDER FILE.beton MODE COMPRESS_PROBABILITY WORKERS IMAGES
"""

import contextlib
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

MAX_RESOLUTION = 500
JPEG_QUALITY = 90


def prepare_ours(
    folder: str, target: str, mode: str, probability: float, workers: int, images: int
) -> Callable[[], object]:
    """What write_dataset.py does, after its imports."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ffcv_train.data.convert.write import WriteConfig, convert

    config = WriteConfig(
        data_dir=folder,
        write_path=target,
        write_mode=mode,
        compress_probability=probability,
        max_resolution=MAX_RESOLUTION,
        jpeg_quality=JPEG_QUALITY,
        num_workers=workers,
        subset=images,
    )
    return lambda: convert(config)


def prepare_stock(
    folder: str, target: str, mode: str, probability: float, workers: int, images: int
) -> Callable[[], object]:
    """What FFCV's ImageNet script does (libffcv/ffcv-imagenet, write_imagenet.py), after its imports."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    def convert() -> None:
        image = RGBImageField(
            write_mode=mode,
            max_resolution=MAX_RESOLUTION,
            compress_probability=probability,
            jpeg_quality=JPEG_QUALITY,
        )
        writer = DatasetWriter(target, {"image": image, "label": IntField()}, num_workers=workers)
        dataset = Subset(ImageFolder(root=folder), range(images))
        writer.from_indexed_dataset(dataset, chunksize=100)
        for process in multiprocessing.active_children():
            process.join()

    return convert


WRITERS = {"ffcv_train": prepare_ours, "ffcv": prepare_stock}


def cpu_seconds() -> float:
    """User and system time of this process and of the children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(writer: str, folder: str, target: str, mode: str, probability: str, workers: str, images: str) -> None:
    """Convert the first `images` of the class folders."""
    convert = WRITERS[writer](folder, target, mode, float(probability), int(workers), int(images))
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with contextlib.redirect_stdout(sys.stderr):
        convert()
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu_start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
