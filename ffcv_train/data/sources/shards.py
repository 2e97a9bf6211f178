"""Tar shards in webdataset's layout."""

import re
from pathlib import Path

import braceexpand

from ffcv_train.data.sources.archives import Blob, ZipBlob, index_tar
from ffcv_train.data.sources.class_files import _check_labels, _listed_classes, names_of_labels
from ffcv_train.data.sources.folders import (
    _SPLITS,
)
from ffcv_train.data.sources.source import ArchiveSource, Source, SourceOptions
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json

_SHARD_IMAGES = ("jpg", "jpeg", "png", "webp")
# webdataset's own: the key ends at the first dot after the last slash.
_SHARD_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def tar_shards(options: SourceOptions) -> Source:
    """WebDataset's tar shards: files of one key follow each other; an image, and a label in `cls` or `json`.

    `data_dir` is a folder (its sub-folder `split` where there is one), a glob or a brace pattern. Class names come from
    `classes`, or `classes.txt` beside, or are numbers.
    """
    shards = _shards(options)
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
    listed = _listed_classes(options, shards[0].parent)
    class_names = listed or names_of_labels(labels, lambda index: members[index][0])
    _check_labels(labels, class_names, options.data_dir, options.option)
    return ArchiveSource(members, class_names, labels, named=listed is not None)


def _shards(options: SourceOptions) -> list[Path]:
    pattern = options.data_dir
    folder = Path(pattern)
    if folder.is_dir():
        folder = folder / options.split if (folder / options.split).is_dir() else folder
        shards = sorted(folder.glob("*.tar"))
        # Shards of all splits often lie together: imagenet1k-train-0000.tar, imagenet1k-validation-00.tar.
        of_split = [shard for shard in shards if options.split in shard.name]
        other = next(name for name in _SPLITS if name != options.split)
        if not of_split and any(other in shard.name for shard in shards):
            raise UserError(f"{folder} holds shards of {other!r}, none of {options.split!r}; check --cfg.split")
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
            label = parse_json(parts["json"].read())["label"]
            if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 10**9:
                return label
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{name} has no label: a number from 0 on in .cls, or in .json under 'label', is wanted")
