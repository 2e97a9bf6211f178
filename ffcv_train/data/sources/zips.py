"""The zipped data set layout: images in a zip, labels in a map beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.data.sources.archives import index_zip
from ffcv_train.data.sources.class_files import _check_labels, _listed_classes, _read_text
from ffcv_train.data.sources.folders import _existing_folder
from ffcv_train.data.sources.source import ArchiveSource, Request, Source
from ffcv_train.system.errors import UserError

REPLACING = "make-zip.unfinished"
"""Stands beside archives and maps while some are replaced, and lists them: what lies there may be a mixture."""


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
    if (archive.parent / REPLACING).exists():
        raise UserError(
            f"{archive} and the files beside it may be a mixture of two, because --make-zip was killed as it replaced "
            f"them; run it again"
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
