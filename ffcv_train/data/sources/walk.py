"""Image files below class folders: which files are images, and each real folder once, whatever links lead to it.

A file's ending says whether it is an image; where it has none, its content does.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BufferedReader
from pathlib import Path

from PIL import Image, features

from ffcv_train.data.sources.odd_files import kind_of
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import open_regular

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF")
_WITH_LIBRARY = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
_OF_THE_SYSTEM = frozenset(
    (
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # Synology's and QNAP's
        *("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    )
)
_MAX_SHOWN = 5
_HEAD_BYTES = 32
_KINDS = {"a JPEG", "a PNG", "a TIFF", "a GIF", "a BMP", "a WebP file", "an AVIF file", "a JPEG 2000 file"}
"""Of `kind_of`, what is taken by its content"""


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of image files, in lower case: all of torchvision's ImageFolder, and others that Pillow can read."""
    Image.init()
    formats = {*_FORMATS, *(name for name, library in _WITH_LIBRARY.items() if features.check(library))}
    # Floating-point pixels have no known range.
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats) - {".pfm"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that an operating system keeps for itself."""
    return name.startswith(".") or name in _OF_THE_SYSTEM


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is an image: by its ending, or where its name has none by its first bytes, which `head` gives."""
    suffix = _suffix(name)
    return suffix in image_suffixes() or (not suffix and kind_of(head()) in _KINDS)


def is_image_file(file: str | Path) -> bool:
    """`is_image` of a file on the disk; one that cannot be read is none."""

    def head() -> bytes:
        try:
            with BufferedReader(open_regular(file), _HEAD_BYTES) as content:
                return content.read(_HEAD_BYTES)
        except OSError:
            return b""

    return is_image(os.fspath(file), head)


def find_images(root: Path, folders: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The images in and below each of `folders` of `root`, and what to tell the user of what was left out.

    Files are relative to `root`, in the order of torchvision's ImageFolder. Links are followed; a real folder is
    searched once, under its own path where it has one below `root`, so that a link in a loop ends and no image counts
    twice.

    Hidden files and folders do not count. Raises `UserError` for a folder that cannot be listed.
    """
    walk = _Walk(root)
    links = deque[tuple[str, str]]()
    for folder in folders:
        if (root / folder).is_symlink():
            links.append((folder, folder))
        else:
            links += walk.search(folder, folder)
    # Links that lie higher name what they lead to.
    links = deque(sorted(links, key=lambda link: (link[0].count("/"), link[0])))
    while links:
        links += walk.search(*links.popleft())
    files = {
        folder: [f"{parent}/{name}" for parent, names in sorted(walk.found.get(folder, [])) for name in names]
        for folder in folders
    }
    return files, walk.notes()


@dataclass
class _Walk:
    root: Path
    found: dict[str, list[tuple[str, list[str]]]] = field(default_factory=dict)
    """Per class folder the folders below it, each with the images in it"""

    def __post_init__(self) -> None:
        real = Path(os.path.realpath(self.root))
        self._searched = {str(folder): str(folder) for folder in (real, *real.parents)}
        self._again: list[tuple[str, str]] = []
        self._left_out: Counter[str] = Counter()

    def search(self, start: str, folder: str) -> list[tuple[str, str]]:
        """Search `start` for the class `folder`, links to folders excepted, which are returned with the class."""
        links = []
        stack = [(start, os.path.realpath(self.root / start))]
        while stack:
            parent, real = stack.pop()
            if real in self._searched:
                self._again.append((parent, self._searched[real]))
                continue
            self._searched[real] = parent
            names = []
            for entry in _entries(self.root / parent):
                path = f"{parent}/{entry.name}"
                if is_hidden(entry.name):
                    continue
                if not _is_folder(entry):
                    names.append(entry.name)
                elif entry.is_symlink():
                    links.append((path, folder))
                else:
                    stack.append((path, f"{real}/{entry.name}"))
            folder_path = os.fspath(self.root / parent)
            images = sorted(name for name in names if is_image_file(f"{folder_path}/{name}"))
            self._left_out.update(_suffix(name) for name in set(names).difference(images))
            self.found.setdefault(folder, []).append((parent, images))
        return links

    def notes(self) -> list[str]:
        """What was left out, and why."""
        notes = []
        if self._again:
            path, first = min(self._again)
            what = "1 folder is" if len(self._again) == 1 else f"{len(self._again)} folders are"
            notes.append(
                f"{what} left out, being searched under another path: {path} is {first}{_dots(self._again, 1)}"
            )
        if self._left_out:
            count = self._left_out.total()
            what = "1 file is" if count == 1 else f"{count} files are"
            common = self._left_out.most_common(_MAX_SHOWN)
            shown = ", ".join(f"{suffix or 'none'} ({number})" for suffix, number in common)
            notes.append(f"{what} left out, by their endings no images: {shown}{_dots(self._left_out, _MAX_SHOWN)}")
        return notes


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; check its rights") from None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop of links
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _dots(items: Sequence[object] | Counter[str], shown: int) -> str:
    return ", …" if len(items) > shown else ""
