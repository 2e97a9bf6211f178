"""The images that write_dataset.py reads: class folders, zipped data sets, tar shards, CIFAR.

A source knows names, labels and places of all samples, and reads none of them before it is asked to.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from ffcv_train.data.archives import Blob, ZipBlob, index_tar, index_zip
from ffcv_train.data.beton import sidecar_path
from ffcv_train.errors import UserError

Place = Blob | ZipBlob | np.ndarray
"""Where an image's file is, or its pixels: uint8 [H, W, 3], RGB."""

# torchvision's ImageFolder takes the same, so labels and order agree with it.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
_SPLITS = ("train", "val")
_SHARD_IMAGES = ("jpg", "jpeg", "png", "webp")
# webdataset's own: the key ends at the first dot after the last slash.
_SHARD_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


@dataclass(frozen=True)
class Request:
    """What the user asks for: options of write_dataset.py. `classes` is "" or a file that fixes the label order."""

    data_dir: str
    split: str
    classes: str = ""
    download: bool = False


class Source(ABC):
    """Samples 0 … len − 1; `class_names` stand in label order, `labels` are int64 [len] and index them."""

    def __init__(
        self, class_names: Sequence[str], labels: Sequence[int] | np.ndarray, notes: Sequence[str] = ()
    ) -> None:
        self.class_names = tuple(class_names)
        self.labels = np.asarray(labels, np.int64)
        self.notes = tuple(notes)
        """What the user should know about what was found."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """The sample's name within the source."""

    @abstractmethod
    def place(self, index: int) -> Place:
        """Where the sample is to be read; small and picklable."""

    def read(self, index: int) -> bytes | np.ndarray:
        """The bytes of the sample's image file, or its pixels; raises `OSError`."""
        place = self.place(index)
        return place if isinstance(place, np.ndarray) else place.read()


class FileSource(Source):
    """Files below a folder."""

    def __init__(
        self, root: Path, files: Sequence[str], class_names: Sequence[str], labels: Any, **kwargs: Any
    ) -> None:
        super().__init__(class_names, labels, **kwargs)
        self.root = root
        self._files = files

    def name(self, index: int) -> str:
        return self._files[index]

    def place(self, index: int) -> Blob:
        return Blob(f"{self.root}/{self._files[index]}")


class ArchiveSource(Source):
    """Members of archives."""

    def __init__(self, members: Sequence[tuple[str, Blob | ZipBlob]], class_names: Sequence[str], labels: Any) -> None:
        super().__init__(class_names, labels)
        self._members = members

    def name(self, index: int) -> str:
        return self._members[index][0]

    def place(self, index: int) -> Blob | ZipBlob:
        return self._members[index][1]


class ArraySource(Source):
    """Pixels in memory: uint8 [N, H, W, 3], RGB."""

    def __init__(self, name: str, pixels: np.ndarray, class_names: Sequence[str], labels: Any) -> None:
        super().__init__(class_names, labels)
        self._name = name
        self._pixels = pixels

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def place(self, index: int) -> np.ndarray:
        return self._pixels[index]


def open_source(dataset: str, request: Request) -> Source:
    """The source for an option `--cfg.dataset`; raises `UserError` where its files are missing or wrong."""
    source = SOURCES[dataset](request)
    if not len(source):
        raise UserError(f"{request.data_dir} holds no images for --cfg.dataset={dataset}; check --cfg.data_dir")
    return source


def class_folders(request: Request) -> Source:
    """One folder per class below `data_dir/split`, or below `data_dir` itself; sub-folders are searched too.

    Labels number the folders in sorted order, as torchvision's ImageFolder does: those of `classes` if given, else for
    a split that lies beside a folder `train` those of `train`, else its own.
    """
    root = _existing_folder(request)
    folders = _folders(root)
    if inner := _folders(root / request.split):
        root, folders = root / request.split, inner
    elif other := next((name for name in _SPLITS if _folders(root / name)), None):
        raise UserError(f"{root} holds the split {other!r} but not {request.split!r}; check --cfg.split")
    if not folders:
        raise UserError(
            f"{root} holds no class folders; --cfg.dataset=imagenet wants one folder of images per class in "
            f"--cfg.data_dir or in its sub-folder {request.split}"
        )
    beside = root.parent / "train"
    if request.classes:
        class_names, origin = read_class_names(request.classes), request.classes
        if len(set(class_names)) != len(class_names):
            raise UserError(f"{origin} names a class twice; every class folder must stand in it once")
    elif request.split != "train" and root.name == request.split and _folders(beside):
        class_names, origin = tuple(_folders(beside)), str(beside)
    else:
        class_names, origin = tuple(folders), str(root)
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [folder for folder in folders if folder not in label_of]
    if unknown:
        raise UserError(
            f"{root} holds the class folder {unknown[0]!r}{_and_more(unknown)}, which {origin} does not know; "
            f"remove it, or give another order of labels with --cfg.classes"
        )

    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        found = _image_files(root, folder)
        files += found
        labels += [label_of[folder]] * len(found)
    present = set(labels)
    empty = [name for label, name in enumerate(class_names) if label not in present]
    notes = (
        [f"{len(empty)} of {len(class_names)} classes have no images: {empty[0]}{_and_more(empty)}"] if empty else []
    )
    return FileSource(root, files, class_names, labels, notes=notes)


def zipped(request: Request) -> Source:
    """`split.zip` with `split_map.txt`: lines `<path>\\t<label>`, where the archive holds `split/<path>`.

    Class names come from `classes`, or `classes.txt` beside, or the class folders in `train_map.txt`, or are numbers.
    """
    root = _existing_folder(request)
    return open_zip(root / f"{request.split}.zip", root / f"{request.split}_map.txt", request.classes)


def open_zip(archive: Path, map_file: Path, classes: str = "") -> "ArchiveSource":
    """The images that `map_file` lists, in `archive` by these paths or within a folder of the archive's name.

    Class names as `zipped` takes them. Raises `UserError`, for a line of the map with its number.
    """
    for file in (archive, map_file):
        if not file.is_file():
            raise UserError(
                f"{file} does not exist; a zipped data set is {archive.name} with {map_file.name} beside it"
            )
    entries = read_map(map_file)
    index = index_zip(archive)
    members = []
    for path, _ in entries:
        member = index.get(f"{archive.stem}/{path}") or index.get(path)
        if member is None:
            raise UserError(
                f"line {map_line(map_file, path)} of {map_file} lists {path}, which {archive} does not hold; do they "
                "belong together?"
            )
        members.append((path, member))
    labels = [label for _, label in entries]
    class_names = _listed_classes(Request("", "", classes), archive.parent)
    if class_names is None:
        train_map = archive.with_name("train_map.txt")
        class_names = _classes_from_map(read_map(train_map) if train_map.is_file() else entries, max(labels, default=0))
    beyond = next((path for path, label in entries if label >= len(class_names)), None)
    origin = f"line {map_line(map_file, beyond)} of {map_file}" if beyond is not None else str(map_file)
    _check_labels(labels, class_names, origin)
    return ArchiveSource(members, class_names, labels)


def tar_shards(request: Request) -> Source:
    """WebDataset's tar shards: files of one key follow each other; an image, and a label in `cls` or `json`.

    `data_dir` is a folder (its sub-folder `split` where there is one), a glob or a brace pattern. Class names come from
    `classes`, or `classes.txt` beside, or are numbers.
    """
    shards = _shards(request)
    members: list[tuple[str, Blob | ZipBlob]] = []
    labels: list[int] = []
    for shard in shards:
        for key, parts in _shard_samples(shard):
            name = f"{shard.name}/{key}"
            image = next((parts[suffix] for suffix in _SHARD_IMAGES if suffix in parts), None)
            if image is None:
                raise UserError(f"{name} has no {', '.join(_SHARD_IMAGES)} beside its {', '.join(parts)} in {shard}")
            members.append((name, image))
            labels.append(_shard_label(name, parts))
    class_names = _listed_classes(request, shards[0].parent)
    if class_names is None:
        class_names = tuple(map(str, range(max(labels, default=-1) + 1)))
    _check_labels(labels, class_names, request.data_dir)
    return ArchiveSource(members, class_names, labels)


def cifar10(request: Request) -> Source:
    """torchvision's CIFAR-10."""
    return _cifar("CIFAR10", request)


def cifar100(request: Request) -> Source:
    """torchvision's CIFAR-100."""
    return _cifar("CIFAR100", request)


SOURCES: dict[str, Callable[[Request], Source]] = {
    "imagenet": class_folders,
    "zip": zipped,
    "webdataset": tar_shards,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar": cifar10,  # FFCV's name for it
}


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names in label order: a text file's lines, or those in a .beton's sidecar (`F.beton` or `F.beton.json`)."""
    path = Path(file)
    if path.suffix == ".beton":
        path = sidecar_path(path)
    text = _read_text(path)
    if path.suffix != ".json":
        names = [line.strip() for line in text.strip().splitlines()]
    else:
        try:
            names = json.loads(text)["class_names"]
        except (ValueError, KeyError, TypeError):
            names = []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} does not list class names: one per line, in label order, or a .beton's sidecar")
    return tuple(names)


def read_map(file: Path) -> list[tuple[str, int]]:
    """The (path, label) pairs of a map file, lines `<path>\\t<label>`; raises `UserError` naming the line."""
    return parse_map(_read_text(file), str(file))


def parse_map(text: str, origin: str) -> list[tuple[str, int]]:
    """As `read_map`; `origin` names the text in errors. Empty lines do not count."""
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        path, tab, label = line.removesuffix("\r").rpartition("\t")
        if not (tab and path and re.fullmatch(r"[0-9]{1,9}", label.strip(), re.ASCII)):
            raise UserError(f"line {number} of {origin} is not <path>, a tab and a label from 0 on: {line[:80]!r}")
        entries.append((path, int(label)))
    return entries


def map_line(file: Path, path: str) -> int:
    """The number of the line of a map file that lists `path`; 0 where none does."""
    lines = enumerate(_read_text(file).split("\n"), 1)
    return next((number for number, line in lines if line.rpartition("\t")[0] == path), 0)


def _existing_folder(request: Request) -> Path:
    root = Path(request.data_dir).absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--cfg.data_dir: {root} {what}; give the folder that holds the images")
    return root


def _folders(root: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones are no classes. Empty where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith(".") and entry.is_dir())


def _image_files(root: Path, folder: str) -> list[str]:
    """Image files in and below `root/folder`, relative to `root`, in ImageFolder's order; hidden ones do not count."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}")

    found: list[tuple[str, list[str]]] = []
    for parent, subfolders, names in os.walk(root / folder, followlinks=True, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [
            name
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        ]
        found.append((parent, images))
    return [f"{os.path.relpath(parent, root)}/{name}" for parent, images in sorted(found) for name in images]


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file") from None


def _listed_classes(request: Request, root: Path) -> tuple[str, ...] | None:
    if request.classes:
        return read_class_names(request.classes)
    beside = root / "classes.txt"
    return read_class_names(beside) if beside.is_file() else None


def _classes_from_map(entries: Sequence[tuple[str, int]], last_label: int) -> tuple[str, ...]:
    """Each label's class folder, where a map has exactly one for it, else the label itself."""
    folders: dict[int, set[str]] = {}
    for path, label in entries:
        folders.setdefault(label, set()).add(path.rpartition("/")[0])
    count = max(last_label, *folders, 0) + 1
    named = {label: next(iter(found)) for label, found in folders.items() if len(found) == 1}
    if len(set(named.values())) < len(named):
        named = {}  # one folder holds several classes, and its name is none of theirs
    return tuple(named.get(label) or str(label) for label in range(count))


def _check_labels(labels: Sequence[int], class_names: Sequence[str], origin: str) -> None:
    if labels and max(labels) >= len(class_names):
        raise UserError(
            f"{origin} has the label {max(labels)}, but {len(class_names)} classes are named (labels 0 … "
            f"{len(class_names) - 1}); correct classes.txt or --cfg.classes"
        )


def _shards(request: Request) -> list[Path]:
    pattern = request.data_dir
    folder = Path(pattern)
    if folder.is_dir():
        folder = folder / request.split if (folder / request.split).is_dir() else folder
        shards = sorted(folder.glob("*.tar"))
        # Shards of all splits often lie together: imagenet1k-train-0000.tar, imagenet1k-validation-00.tar.
        of_split = [shard for shard in shards if request.split in shard.name]
        other = next(name for name in _SPLITS if name != request.split)
        if not of_split and any(other in shard.name for shard in shards):
            raise UserError(f"{folder} holds shards of {other!r}, none of {request.split!r}; check --cfg.split")
        shards = of_split or shards
    else:
        shards = []
        try:
            expanded = list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise UserError(f"--cfg.data_dir={pattern} has an unbalanced brace") from None
        for item in map(Path, expanded):
            found = sorted(Path(item.anchor).glob(str(item.relative_to(item.anchor))))
            if not found:
                raise UserError(
                    f"--cfg.data_dir: no shard {item}; give a folder, a glob or a brace pattern of tar files"
                )
            shards += found
    if not shards:
        raise UserError(f"{folder} holds no shards (*.tar); give a folder, a glob or a brace pattern of tar files")
    return shards


def _shard_samples(shard: Path) -> list[tuple[str, dict[str, Blob]]]:
    samples: list[tuple[str, dict[str, Blob]]] = []
    for name, blob in index_tar(shard):
        match = _SHARD_NAME.fullmatch(name)
        if match is None or name.startswith("__"):
            continue
        key, suffix = match[1], match[2].lower()
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if suffix in samples[-1][1]:
            raise UserError(f"{name} stands twice in {shard}; pack it again with unique names")
        samples[-1][1][suffix] = blob
    return samples


def _shard_label(name: str, parts: dict[str, Blob]) -> int:
    try:
        if "cls" in parts:
            text = parts["cls"].read().decode("ascii").strip()
            if re.fullmatch(r"[0-9]{1,9}", text):
                return int(text)
        elif "json" in parts:
            label = json.loads(parts["json"].read())["label"]
            if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 10**9:
                return label
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{name} has no label: a number from 0 on in .cls, or in .json under 'label', is wanted")


def _cifar(kind: str, request: Request) -> Source:
    if request.classes:
        raise UserError(f"--cfg.classes does not go with {kind}, whose label order is its own; leave it out")
    # Imported here: torchvision takes seconds, and only this source wants it.
    from torchvision import datasets

    try:
        data = getattr(datasets, kind)(request.data_dir, train=request.split == "train", download=request.download)
    except (RuntimeError, OSError) as error:
        advice = "check the network" if request.download else "add --cfg.download=1, or check --cfg.data_dir"
        raise UserError(f"{kind} is not in {request.data_dir}: {' '.join(str(error).split())}; {advice}") from None
    return ArraySource(f"{kind.lower()}/{request.split}", data.data, data.classes, data.targets)


def _and_more(items: Sequence[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
