"""Names of classes from a file, or ImageNet's."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ffcv_train.system.class_names import parse_list
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
        return imagenet_names()
    try:
        names = parse_list(Path(source).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--names {source} cannot be read; give a text file with a class name a line") from None
    if not all(names) or not names:
        raise UserError(f"--names {source} has an empty line; give a text file with a class name a line")
    return ClassNames(names, names)


@cache
def imagenet_names() -> ClassNames:
    """Those of ImageNet-1k: WordNet IDs, and the first synonym of each."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    # "tench" of "tench, Tinca tinca"
    shown = tuple(text.split(",")[0] for text in info.label_descriptions(detailed=False))
    return ClassNames(tuple(info.label_names()), shown)
