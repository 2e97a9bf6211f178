"""ffcv-train write --make-zip: an image folder to train.zip and val.zip with their maps, the MaxSup paper's layout."""

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ffcv_train.data.convert.publish import publish
from ffcv_train.data.convert.unfinished import Unfinished, begin, remove_leftovers
from ffcv_train.data.sources.archives import index_zip
from ffcv_train.data.sources.open import open_source
from ffcv_train.data.sources.source import FileSource, Source, SourceOptions
from ffcv_train.data.sources.zips import REPLACING
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import sync_file
from ffcv_train.system.progress import ProgressLine
from ffcv_train.system.signals import StopSignals

SPLITS = ("train", "val")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same images make the same archive


def make_zips(
    folder: Path, output: Path, split: str | None = None, compress: bool = False, progress: ProgressLine | None = None
) -> list[Path]:
    """Pack an image folder's splits, or `split` alone, into the zipped layout in `output`; returns the files it wrote.

    All of them appear when all are complete, or none. What killed runs left on their way to them is removed. Raises
    `UserError`, and `KeyboardInterrupt` on Ctrl-C.
    """
    progress = progress or ProgressLine(plain_interval=10.0)
    sources = {name: open_source("imagenet", SourceOptions(str(folder), name)) for name in _splits(folder, split)}
    names = {split: archive_names(source, split) for split, source in sources.items()}
    for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
        progress.print(f"note: {note}")
    class_names = _lines(next(iter(sources.values())).class_names)
    contents: dict[Path, str] = {output / "classes.txt": class_names}
    for split, source in sources.items():
        pairs = zip(names[split], source.labels.tolist(), strict=True)
        contents[output / f"{split}_map.txt"] = _lines(f"{name}\t{label}" for name, label in pairs)
    archives = {split: output / f"{split}.zip" for split in sources}
    for target in (*archives.values(), *contents):
        remove_leftovers(target, progress)
    _check_output(output, sources)
    _check_neighbours(output, list(sources), class_names)
    with StopSignals(output) as signals, ExitStack() as cleanup:
        made: list[tuple[Path, Path]] = []

        def temporary(target: Path) -> Unfinished:
            unfinished = begin(target)
            cleanup.callback(unfinished.remove)
            made.append((unfinished.path, target))
            return unfinished

        try:
            for split, source in sources.items():
                entries = [f"{split}/{name}" for name in names[split]]
                _pack(temporary(archives[split]), archives[split].name, source, entries, compress, progress)
            for target, text in contents.items():
                _write(temporary(target), text)
            signals.ignore()
            publish(made, output / REPLACING)
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
    for name in (*names, *source.class_names):
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


def _splits(folder: Path, wanted: str | None) -> list[str]:
    if wanted:
        return [wanted]
    found = [split for split in SPLITS if (folder / split).is_dir()]
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


def _check_neighbours(output: Path, splits: list[str], class_names: str) -> None:
    """Raise `UserError` where what these splits make would lie beside files of another split that do not fit it."""
    others = [split for split in SPLITS if split not in splits and (output / f"{split}.zip").exists()]
    if not others:
        return
    mark = output / REPLACING
    if mark.exists() and f"{others[0]}.zip" in mark.read_text("utf-8", "replace").splitlines():
        raise UserError(
            f"{output} may hold a mixture of two packings, because one that made {others[0]}.zip too was killed as it "
            f"replaced files; pack all splits again, without --split, or choose another --output"
        )
    classes = output / "classes.txt"
    if classes.exists() and classes.read_bytes() != class_names.encode():
        raise UserError(
            f"{classes} names other classes than the images of {splits[0]} have, and {others[0]}.zip beside it is "
            f"numbered by it; pack both splits at once, without --split, or choose another --output"
        )


def _pack(
    to: Unfinished, shown: str, source: Source, names: Sequence[str], compress: bool, progress: ProgressLine
) -> None:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(to.handle, "w", kind) as archive:
        for index, name in enumerate(names):
            try:
                content = source.read(index)
            except OSError as error:
                raise UserError(f"cannot read {source.name(index)}: {error.strerror or error}") from None
            assert isinstance(content, bytes)
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = kind
            archive.writestr(entry, content)
            progress.show(shown, index + 1, len(names), "images")
    sync_file(to.handle)
    if len(index_zip(to.path)) != len(names):
        raise RuntimeError(f"{to.path} does not hold the {len(names)} images that were written")


def _write(to: Unfinished, text: str) -> None:
    to.handle.write(text.encode())
    sync_file(to.handle)


def _lines(texts: Iterator[str] | Sequence[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
