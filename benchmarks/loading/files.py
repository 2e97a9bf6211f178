"""The photographs of a folder, or of a .beton, in the forms that the contenders read."""

import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np

from benchmarks.loading.contenders import Files
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.system.errors import UserError

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png"}
MAX_RESOLUTION, JPEG_QUALITY, LEVEL_SHARE = 500, 90, 0.65


def from_folder(folder: Path, scratch: Path, mode: str, images: int, workers: int) -> Files:
    """Convert `images` photographs of a class folder tree, repeated where there are fewer.

    Raises `UserError` where the folder holds none.
    """
    links = scratch / "links"
    if not links.exists():
        link_photographs(folder, links, images)
    betons = {}
    for name, tiles, level in (("tiles", True, 0.0), ("plain", False, 0.0), ("level", True, LEVEL_SHARE)):
        path = scratch / f"{mode}_{name}.beton"
        convert(
            WriteConfig(
                data_dir=str(links),
                write_path=str(path),
                write_mode=mode,
                compress_probability=0.5,
                max_resolution=MAX_RESOLUTION,
                jpeg_quality=JPEG_QUALITY,
                tiles=tiles,
                level=level,
                num_workers=workers,
            )
        )
        betons[name] = path
    files = Files(betons["tiles"], betons["plain"], betons["level"], scratch / "images", scratch / "shards")
    return _extracted(files, mode, workers)


def from_beton(beton: Path, scratch: Path, workers: int) -> tuple[Files, str]:
    """A .beton as it is, and its mode: "jpg", or "mixed" where it holds raw samples."""
    mode = "jpg" if (open_beton(beton).modes == MODE_JPG).all() else "mixed"
    return _extracted(Files(beton, beton, beton, scratch / "images", scratch / "shards"), mode, workers), mode


def link_photographs(folder: Path, links: Path, images: int) -> None:
    """Links to `images` photographs of a class folder tree, some more than once where there are fewer."""
    if not folder.is_dir():
        raise UserError(f"--folder: {folder} is no folder; give one that holds a folder of images per class")
    found = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"--folder: {folder} holds no class folders with images")
    for i in range(images):
        file = found[i * len(found) // images if len(found) > images else i % len(found)]
        link = links / file.parent.name / f"{i:07d}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def _extracted(files: Files, mode: str, workers: int) -> Files:
    """Write the JPEGs of the plain beton as files and as tar shards, so that all decode the same bytes."""
    if mode != "jpg":
        return files
    beton = open_beton(files.plain_beton)
    content = np.memmap(beton.path, np.uint8, mode="r")
    for folder in (files.images, files.shards):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for shard in range(4 * workers):
        with tarfile.open(files.shards / f"{shard:03d}.tar", "w") as tar:
            for i in range(shard, len(beton), 4 * workers):
                data = content[beton.ptrs[i] : beton.ptrs[i] + beton.sizes[i]].tobytes()
                label = int(beton.labels[i])
                image = files.images / f"{label:04d}" / f"{i:07d}.jpg"
                image.parent.mkdir(exist_ok=True)
                image.write_bytes(data)
                for suffix, member in (("jpg", data), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{i:07d}.{suffix}")
                    entry.size = len(member)
                    tar.addfile(entry, BytesIO(member))
    return files
