"""Image folders: a folder per class."""

from collections.abc import Sequence
from pathlib import Path

from ffcv_train.data.sources.class_files import read_class_names
from ffcv_train.data.sources.source import FileSource, Source, SourceOptions
from ffcv_train.data.sources.walk import find_images, is_hidden
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError

_SPLITS = ("train", "val")


def class_folders(options: SourceOptions) -> Source:
    """One folder per class below `data_dir/split`, or below `data_dir` itself; sub-folders are searched too.

    Labels number the folders in sorted order, as torchvision's ImageFolder does: those of `classes` if given, else for
    a split that lies beside a folder `train` those of `train`, else its own.
    """
    root = _existing_folder(options)
    folders = _folders(root)
    if inner := _folders(root / options.split):
        root, folders = root / options.split, inner
    elif other := next((name for name in _SPLITS if _folders(root / name)), None):
        raise UserError(f"{root} holds the split {other!r} but not {options.split!r}; name the split that is there")
    if not folders:
        raise UserError(
            f"{root} holds no class folders; put the images of each class into a folder of its name, there or in a "
            f"folder {options.split} there"
        )
    beside = root.parent / "train"
    names = _names(root, folders)
    if options.classes:
        class_names, origin = read_class_names(options.classes), options.classes
        double = next((name for name in names if class_names.count(name) > 1), None)
        if double is not None:
            raise UserError(f"{origin} names the class {double!r} twice; every class folder must stand in it once")
    elif options.split != "train" and root.name == options.split and _folders(beside):
        class_names, origin = _names(beside, _folders(beside)), str(beside)
    else:
        class_names, origin = names, str(root)
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise UserError(
            f"{root} holds the class folder {unknown[0]!r}{_and_more(unknown)}, which {origin} does not know; "
            f"remove it, or list all classes in label order in a file, a line each, and pass {options.option}=FILE"
        )

    found, notes = find_images(root, folders)
    files = [file for folder in folders for file in found[folder]]
    labels = [label_of[name] for name, folder in zip(names, folders, strict=True) for _ in found[folder]]
    return FileSource(root, files, class_names, labels, notes=notes)


def _existing_folder(options: SourceOptions) -> Path:
    root = Path(options.data_dir).absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"the folder of images {root} {what}; give the one that holds them")
    return root


def _folders(root: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones are no classes. Empty where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if not is_hidden(entry.name) and entry.is_dir())


def _names(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The classes that `folders` of `root` are, in their order. Raises `UserError` where two are one."""
    folder_of: dict[str, str] = {}
    for folder in folders:
        other = folder_of.setdefault(tidy(folder), folder)
        if other != folder:
            raise UserError(
                f"{root} holds the class folders {other!r} and {folder!r}, whose names differ in nothing but white "
                "space; rename one"
            )
        if not tidy(folder):
            raise UserError(f"{root} holds the class folder {folder!r}, which has no name; rename it")
    return tuple(folder_of)


def _and_more(items: Sequence[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
