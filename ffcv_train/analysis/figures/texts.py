"""Names in figures as they are written: no mathematics, and glyphs of whatever script a font here has."""

import functools
import sys
import unicodedata

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

_NO_GLYPHS = ("Last Resort",)
"""A font whose every glyph says what it lacks"""


def settle_texts(figure: Figure) -> None:
    """Let every text of `figure` be drawn as it is written, but for the numbers that axes write themselves.

    A dollar is a dollar. A character that matplotlib's own font lacks is drawn by a font of the system that has it;
    where none has, it stands as its number in Unicode, and a note on stderr says so once; so do control characters.
    """
    numbers: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = axis.get_majorticklabels()
            if isinstance(axis.get_major_formatter(), ScalarFormatter | LogFormatter):
                numbers |= {id(label) for label in [*labels, *axis.get_minorticklabels(), axis.get_offset_text()]}
                continue
            before = [label.get_text() for label in labels]
            for label in labels:
                _settle(label)
            if before != [label.get_text() for label in labels]:
                # The axis writes its labels anew when it is drawn.
                axis.set_ticklabels([label.get_text() for label in labels])
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in numbers:
            _settle(text)


def _settle(text: Text) -> None:
    text.set_parse_math(False)
    written = text.get_text()
    if any(map(_is_no_character, written)):
        text.set_text("".join(_number(c) if _is_no_character(c) else c for c in written))
    _use_fonts_that_have(text)


def _is_no_character(character: str) -> bool:
    """Whether it is one that no font draws: for a terminal, or half of one, as in names that are no UTF-8."""
    return character != "\n" and unicodedata.category(character) in ("Cc", "Cs")


def _use_fonts_that_have(text: Text) -> None:
    written = text.get_text()
    properties = text.get_fontproperties()
    missing = {character for character in written if character.isprintable()} - _characters(
        font_manager.findfont(FontProperties(family=properties.get_family()))
    )
    if not missing:
        return
    families = [_family_with(character) for character in sorted(missing)]
    text.set_fontfamily([*properties.get_family(), *dict.fromkeys(family for family in families if family)])
    nowhere = {character for character in missing if _family_with(character) is None}
    if nowhere:
        text.set_text("".join(_number(c) if c in nowhere else c for c in written))
        _say_what_lacks()


def _number(character: str) -> str:
    return f"[{ord(character):X}]"


@functools.cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@functools.cache
def _family_with(character: str) -> str | None:
    """A font of the system that has `character`; None where there is none."""
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        if not font.name.startswith(_NO_GLYPHS) and character in _characters(font.fname):
            return font.name
    return None


@functools.cache
def _say_what_lacks() -> None:
    print(
        "note: no font here has some characters of the names in figures, which show their numbers in Unicode instead; "
        "install a font that has them, Noto Sans CJK say",
        file=sys.stderr,
    )
