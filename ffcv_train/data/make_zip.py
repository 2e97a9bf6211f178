"""write_dataset.py --make-zip: an image folder to train.zip and val.zip with their maps, the MaxSup paper's layout."""

import argparse
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ffcv_train.data.archives import index_zip
from ffcv_train.data.sources import FileSource, Request, Source, open_source
from ffcv_train.data.stop_signals import StopSignals
from ffcv_train.errors import UserError
from ffcv_train.progress import ProgressLine

_SPLITS = ("train", "val")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same images make the same archive
_DESCRIPTION = """Pack an image folder into archives that --data.format=zip trains on.

python write_dataset.py --make-zip ImageNet --output zips

DIR holds train/ and val/ with a folder per class each, or class folders itself. train.zip holds train/CLASS/FILE,
train_map.txt a line CLASS/FILE, tab, label; val.zip holds val/FILE, val_map.txt a line FILE, tab, label; classes.txt
the class names in label order. Images are packed as they are.
"""


def make_zips(argv: Sequence[str], progress: ProgressLine | None = None) -> list[Path]:
    """Run `write_dataset.py --make-zip DIR --output OUT …`; returns the files that it wrote.

    All of them appear when all are complete, or none. Raises `UserError`, and `KeyboardInterrupt` on Ctrl-C.
    """
    options = _parse(argv)
    progress = progress or ProgressLine(plain_interval=10.0)
    folder, output = Path(options.make_zip), Path(options.output)
    sources = {split: open_source("imagenet", Request(str(folder), split)) for split in _splits(folder, options.split)}
    names = {split: archive_names(source, split) for split, source in sources.items()}
    for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
        progress.print(f"note: {note}")
    _check_output(output, sources)
    mark = f".tmp-{secrets.token_hex(4)}"
    contents: dict[Path, str] = {output / "classes.txt": _lines(next(iter(sources.values())).class_names)}
    with StopSignals(output) as signals, ExitStack() as cleanup:
        made: list[tuple[Path, Path]] = []

        def temporary(target: Path) -> Path:
            path = target.with_name(target.name + mark)
            cleanup.callback(path.unlink, missing_ok=True)
            made.append((path, target))
            return path

        try:
            for split, source in sources.items():
                archive = output / f"{split}.zip"
                _pack(
                    temporary(archive), source, [f"{split}/{name}" for name in names[split]], options.compress, progress
                )
                pairs = zip(names[split], source.labels.tolist(), strict=True)
                contents[output / f"{split}_map.txt"] = _lines(f"{name}\t{label}" for name, label in pairs)
            for target, text in contents.items():
                _write(temporary(target), text)
            signals.ignore()
            for path, target in made:
                path.replace(target)
        except OSError as error:
            raise UserError(f"writing to {output} failed: {error.strerror or error}; it is as it was before") from error
        finally:
            progress.close()
    for _, target in made:
        progress.print(str(target))
    return [target for _, target in made]


def archive_names(source: Source, split: str) -> list[str]:
    """Each sample's path within its split's folder: CLASS/FILE for train, for val FILE alone.

    Files of one name in several classes get the class before it in val, with `_` for every slash. Raises `UserError`
    for names that a map's line cannot hold.
    """
    names = [source.name(index) for index in range(len(source))]
    for name in names:
        if any(character in name for character in "\t\n\r") or not _is_text(name):
            raise UserError(f"the file name {name!r} holds a tab, a line break or no UTF-8 text; rename it")
    if split == "train":
        return names
    files = [name.rpartition("/")[2] for name in names]
    seen: dict[str, int] = {}
    for file in files:
        seen[file] = seen.get(file, 0) + 1
    flat = [file if seen[file] == 1 else name.replace("/", "_") for file, name in zip(files, names, strict=True)]
    if len(set(flat)) < len(flat):
        double = next(name for name in flat if flat.count(name) > 1)
        raise UserError(f"two images of val would both be called {double!r}; rename one")
    return flat


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="write_dataset.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--make-zip", metavar="DIR", required=True, help="the image folder")
    parser.add_argument("--output", metavar="OUT", required=True, help="folder for archives and maps, made if needed")
    parser.add_argument("--split", choices=_SPLITS, help="pack this split alone; needed where DIR has class folders")
    parser.add_argument("--compress", action="store_true", help="deflate the images; JPEGs hardly shrink")
    return parser.parse_args(argv)


def _splits(folder: Path, wanted: str | None) -> list[str]:
    if wanted:
        return [wanted]
    found = [split for split in _SPLITS if (folder / split).is_dir()]
    if not found:
        raise UserError(
            f"{folder} has no folder train or val; where it holds the class folders itself, say which split they are "
            "with --split"
        )
    return found


def _check_output(output: Path, sources: dict[str, Source]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {output}: {error.strerror}; choose another") from None
    needed = 0
    for source in sources.values():
        assert isinstance(source, FileSource)
        for index in range(len(source)):
            # Names stand twice in an archive and once in the map.
            try:
                size = (source.root / source.name(index)).stat().st_size
            except OSError as error:
                raise UserError(f"cannot read {source.name(index)}: {error.strerror or error}") from None
            needed += size + 3 * len(source.name(index)) + 120
    free = shutil.disk_usage(output).free
    if needed > free:
        raise UserError(
            f"the archives take about {needed / 2**30:.1f} GiB, and {output} has {free / 2**30:.1f} GiB free; free "
            "space there, or choose another --output"
        )


def _pack(path: Path, source: Source, names: Sequence[str], compress: bool, progress: ProgressLine) -> None:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with path.open("xb") as file:
        with zipfile.ZipFile(file, "w", kind) as archive:
            for index, name in enumerate(names):
                try:
                    content = source.read(index)
                except OSError as error:
                    raise UserError(f"cannot read {source.name(index)}: {error.strerror or error}") from None
                assert isinstance(content, bytes)
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = kind
                archive.writestr(entry, content)
                progress.show(path.name.partition(".tmp")[0], index + 1, len(names), "images")
        file.flush()
        os.fsync(file.fileno())
    if len(index_zip(path)) != len(names):
        raise RuntimeError(f"{path} does not hold the {len(names)} images that were written")


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _lines(texts: Iterator[str] | Sequence[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
