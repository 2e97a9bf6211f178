"""The zipped data set layout: images in a zip, labels in a map beside it."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ffcv_train.data.sources.archives import index_zip
from ffcv_train.data.sources.class_files import _check_labels, _listed_classes, _read_text, names_of_labels
from ffcv_train.data.sources.folders import _existing_folder
from ffcv_train.data.sources.source import ArchiveSource, Source, SourceOptions
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError

REPLACING = "make-zip.unfinished"
"""Stands beside archives and maps while some are replaced, and lists them: what lies there may be a mixture."""


def zipped(options: SourceOptions) -> Source:
    """`split.zip` with `split_map.txt`: lines `<path>\\t<label>`, where the archive holds `split/<path>`.

    Class names come from `classes`, or `classes.txt` beside, or the class folders in `train_map.txt`, or are numbers.
    """
    root = _existing_folder(options)
    return open_zip(root / f"{options.split}.zip", root / f"{options.split}_map.txt", options.classes)


def open_zip(archive: Path, map_file: Path, classes: str = "", option: str = "--cfg.classes") -> "ArchiveSource":
    """The images that `map_file` lists, in `archive` by these paths or within a folder of the archive's name.

    Class names as `zipped` takes them; `option` is what the user knows `classes` as. Where a list has the class folders
    in another order than the map's labels, it gives the labels, as it does for a folder.
    Raises `UserError`, for a line of the map with its number.
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
    notes = _contradictions(entries, map_file)
    train_map = archive.with_name("train_map.txt")
    folders = _class_folders(*((read_map(train_map), "train") if train_map.is_file() else (entries, archive.stem)))
    listed = _listed_classes(SourceOptions("", "", classes), archive.parent)
    class_names = listed or names_of_labels(labels, lambda index: _line(map_file, entries[index]), folders)
    if listed and _in_another_order(folders, listed) and set(labels) <= set(folders):
        label_of = {name: label for label, name in enumerate(listed)}
        labels = [label_of[folders[label]] for label in labels]
        notes.append(
            f"{map_file} has the classes in another order than their list; images are labelled by the list, by the "
            "names of their class folders"
        )
    beyond = next((path for (path, _), label in zip(entries, labels, strict=True) if label >= len(class_names)), None)
    origin = f"line {map_line(map_file, beyond)} of {map_file}" if beyond is not None else str(map_file)
    _check_labels(labels, class_names, origin, option)
    return ArchiveSource(members, class_names, labels, named=bool(listed or folders), notes=notes)


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


def _line(file: Path, entry: tuple[str, int]) -> str:
    lines = enumerate(_read_text(file).split("\n"), 1)
    return f"line {next(number for number, line in lines if parse_map(line, '') == [entry])} of {file}"


def _contradictions(entries: Sequence[tuple[str, int]], file: Path) -> list[str]:
    """A note where the map lists an image with several labels."""
    first: dict[str, int] = {}
    double = [path for path, label in entries if first.setdefault(path, label) != label]
    if not double:
        return []
    labels = " and ".join(str(label) for label in dict.fromkeys(label for path, label in entries if path == double[0]))
    what = "1 image" if len(set(double)) == 1 else f"{len(set(double))} images"
    return [f"{file} lists {what} with several labels: {double[0]} with {labels}; each counts under all of them"]


def _class_folders(entries: Sequence[tuple[str, int]], split: str) -> dict[int, str]:
    """The folder that a map has for each label, sub-folders not counted; empty where one holds several classes.

    All paths may lie in a folder `split`, which is then no part of the name.
    """
    prefix = f"{split}/" if all(path.startswith(f"{split}/") for path, _ in entries) else ""
    folders: dict[int, set[str]] = {}
    for path, label in entries:
        folders.setdefault(label, set()).add(path.removeprefix(prefix).rpartition("/")[0])
    named = {label: tidy(_common_folder(found)) for label, found in folders.items()}
    if len(set(named.values())) < len(named):
        return {}
    return {label: name for label, name in named.items() if name}


def _in_another_order(folders: Mapping[int, str], listed: Sequence[str]) -> bool:
    """Whether `listed` names the class folders, but not at their labels."""
    if not set(folders.values()) <= set(listed) or len(set(listed)) < len(listed):
        return False
    return any(label >= len(listed) or listed[label] != folder for label, folder in folders.items())


def _common_folder(paths: Iterable[str]) -> str:
    columns = zip(*(path.split("/") for path in paths), strict=False)
    return "/".join(parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
