"""Names of classes from a file, or ImageNet's."""

from dataclasses import dataclass
from pathlib import Path

from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes, in label order."""

    keys: tuple[str, ...]
    """As data sets call them: folder names, ImageNet's WordNet IDs"""
    shown: tuple[str, ...]
    """As people read them"""

    def find(self, text: str) -> int | None:
        """The label that `text` is a name of, None where it is none's or several classes'."""
        for names in (self.keys, self.shown):
            if names.count(text) == 1:
                return names.index(text)
        return None


def read_names(source: str | None) -> ClassNames | None:
    """The names in the file `source`, a line each; "imagenet": ImageNet-1k's, as timm knows them; None: None.

    Raises `UserError` where the file cannot be read or has an empty line between names.
    """
    if source is None:
        return None
    if source == "imagenet":
        return _imagenet()
    try:
        names = tuple(line.strip() for line in Path(source).read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--names {source} cannot be read; give a text file with a class name a line") from None
    if not all(names) or not names:
        raise UserError(f"--names {source} has an empty line; give a text file with a class name a line")
    return ClassNames(names, names)


def _imagenet() -> ClassNames:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    # The first synonym: "tench" of "tench, Tinca tinca".
    shown = tuple(text.split(",")[0] for text in info.label_descriptions(detailed=False))
    return ClassNames(tuple(info.label_names()), shown)
