"""Images that are looked at, not trained on: files, folders, zip archives and .beton files, without labels."""

import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_train.data.format.beton import Beton, is_beton, open_beton
from ffcv_train.data.kernels.crops import CenterCrop, crop_parameters
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.data.kernels.decode import Scratch, decode_samples, problem_of
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.data.loading.image_worker import Failure
from ffcv_train.data.sources.archives import Blob, ZipBlob, index_zip
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode_rgb
from ffcv_train.data.sources.walk import find_images, is_hidden, is_image
from ffcv_train.system.errors import UserError

_AHEAD = 4  # tasks per thread that are under way


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, and where it is."""

    name: str
    """A file's path; an archive's or a .beton's path, a slash, and the image's name or number in it"""
    place: "Blob | ZipBlob | Sample"


@dataclass(frozen=True, eq=False)
class Sample:
    """An image in a .beton file."""

    beton: Beton
    index: int


def open_pictures(paths: Sequence[str | Path]) -> list[Picture]:
    """The images that `paths` hold, in their order: a file is one; folders and archives are searched to their leaves.

    No image is decoded. Hidden files do not count, nor in folders and archives what is no image by its ending, or
    where it has none by its first bytes. Raises `UserError` for a path that does not exist, or that holds none.
    """
    found: list[Picture] = []
    for path in map(Path, paths):
        pictures = _within(path)
        if not pictures:
            raise UserError(f"{path} holds no images; name image files, folders or .zip files of them, or .beton files")
        found += pictures
    return found


def cut_pictures(
    pictures: Sequence[Picture], crop: CenterCrop, side: int, num_workers: int
) -> Generator[np.ndarray | Failure, None, None]:
    """Yield uint8 [side, side, 3], or why there is none, for each picture in order; `close` it when leaving early.

    The same pixels as validation's, for they are cut by the same loop; decoded by `num_workers` threads, ahead of the
    consumer.
    """
    parameters, local = crop_parameters(crop), threading.local()

    def cut(picture: Picture) -> np.ndarray | Failure:
        if not hasattr(local, "cutter"):
            local.cutter = Cutter(parameters)
        try:
            if isinstance(picture.place, Sample):
                return _cut_sample(picture.place, parameters, side)
            return local.cutter(contiguous(decode_rgb(picture.place.read())), side)
        except (ImageError, MemoryError) as error:
            return Failure(f"{picture.name} {error or 'is too large for the memory'}")
        except OSError as error:
            return Failure(f"{picture.name} cannot be read: {error.strerror or error}")

    pending: deque[Future[np.ndarray | Failure]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        try:
            for picture in pictures:
                pending.append(pool.submit(cut, picture))
                if len(pending) >= _AHEAD * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _within(path: Path) -> list[Picture]:
    kind = path.suffix.lower()
    if path.is_dir():
        root = Path(os.path.abspath(path))  # noqa: PTH100 (resolve would follow links)
        found, _ = find_images(root.parent, [root.name])
        names = [file.removeprefix(f"{root.name}/") for file in found[root.name]]
        return [Picture(f"{path}/{name}", Blob(f"{path}/{name}")) for name in names]
    if not path.exists():
        raise UserError(f"{path} does not exist; name image files, folders or .zip files of them, or .beton files")
    if kind == ".beton" or is_beton(path):
        beton = open_beton(path)
        files = beton.files
        names = [files[index] if index < len(files) else str(index) for index in range(len(beton))]
        return [Picture(f"{path}/{name}", Sample(beton, index)) for index, name in enumerate(names)]
    if kind == ".zip":
        members = index_zip(path)
        return [Picture(f"{path}/{name}", place) for name, place in members.items() if _counts(name, place)]
    return [Picture(str(path), Blob(str(path)))]


def _counts(member: str, place: ZipBlob) -> bool:
    def head() -> bytes:
        try:
            return place.read()
        except OSError:
            return b""

    return not any(map(is_hidden, member.split("/"))) and is_image(member, head)


def _cut_sample(sample: Sample, parameters: np.ndarray, side: int) -> np.ndarray:
    beton, index = sample.beton, sample.index
    height, width, size = int(beton.heights[index]), int(beton.widths[index]), int(beton.sizes[index])
    stored = np.frombuffer(Blob(str(beton.path), int(beton.ptrs[index]), size).read(), np.uint8)
    compressed = beton.modes[index] == MODE_JPG
    target = np.empty((1, side, side, 3), np.uint8)
    scratch = Scratch(height * width * 3 if compressed else 0, size if compressed else 0, max(height, width), side)
    position, problem = decode_samples(
        (
            np.array([stored.ctypes.data], np.uint64),
            np.array([size]),
            beton.modes[index : index + 1],
            np.array([height]),
            np.array([width]),
            np.array([index]),
        ),
        0,
        0,
        (parameters[None], np.array([side])),
        target.reshape(-1),
        0,
        1,
        scratch.arguments,
    )
    if position >= 0:
        raise ImageError(problem_of(problem, stored.tobytes()))
    return target[0]
