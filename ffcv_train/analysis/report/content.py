"""What a page is made of."""

import base64
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ffcv_train.analysis.report.rules import Finding
from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class Table:
    """Texts; the first column names the rows, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    folded: bool = False
    numeric: bool = True
    links: Sequence[str] = ()
    """For each column the name of the section that its cells lead to; empty: none"""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph; as a note, something that the reader should not miss."""

    text: str
    note: bool = False
    title: str = ""
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Drawing:
    """A drawing as an address of its own content (data:), on white whatever the page's colours are."""

    title: str
    address: str
    width: int
    """In CSS pixels, at which its text is legible"""
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Key:
    """An entry of the curves' legend."""

    label: str
    color: str
    """A CSS colour"""
    dashes: str
    """SVG's stroke-dasharray"""


@dataclass(frozen=True)
class Panels:
    """Curves as inline SVG in the page's colours, with one legend."""

    legend: Sequence[Key]
    panels: Sequence[tuple[str, str]]
    """Title, and SVG of ours, which the page takes as it is"""
    kind: Literal["panels"] = "panels"


@dataclass(frozen=True)
class Findings:
    """What the rules found: runs and findings of one rule together."""

    groups: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
    """Title, advice, and (run, evidence) each"""
    kind: Literal["findings"] = "findings"


Item = Table | Text | Drawing | Panels | Findings


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    items: list[Item] = field(default_factory=list)


def anchor(title: str) -> str:
    """The address of the section called `title` within the page.

    >>> anchor("Calibration, before and after")
    'calibration-before-and-after'
    """
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def group_findings(found: Sequence[tuple[str, Finding]]) -> Findings:
    """(run, finding) each, by rule, in the order in which the rules come first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run, finding in found:
        groups.setdefault((finding.title, finding.advice), []).append((run, finding.evidence))
    return Findings([(title, advice, runs) for (title, advice), runs in groups.items()])


def drawing(path: Path, title: str = "") -> Drawing:
    """A .png or .svg file as a drawing. Raises `UserError` where it is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the file and its rights") from None
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 24:
        # A figure's PNG has 200 pixels per inch, and CSS 96.
        width = round(struct.unpack(">I", content[16:20])[0] * 96 / 200)
        return Drawing(title or path.stem, data_address("image/png", content), width)
    if b"<svg" in content[:4096]:
        return Drawing(title or path.stem, data_address("image/svg+xml", content), _svg_width(content))
    raise UserError(f"{path} is no PNG and no SVG; write it again or move it away")


def data_address(kind: str, content: bytes) -> str:
    """A data: address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _svg_width(content: bytes) -> int:
    """Of matplotlib's SVG, which states it in points; a screen's width where it does not."""
    head = content[:4096].partition(b"<svg")[2].partition(b">")[0]
    try:
        return round(float(head.partition(b'width="')[2].partition(b'pt"')[0]) * 96 / 72)
    except ValueError:
        return 640


def tables_of(markdown: str) -> list[Item]:
    """The tables and paragraphs of Markdown of ours, without code and pictures; a heading titles what follows it."""
    items: list[Item] = []
    title, code = "", False
    lines = markdown.splitlines()
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("```"):
            code = not code
        elif code or not line or line.startswith(("# ", "![")):
            pass
        elif line.startswith("## "):
            title = line[3:]
        elif line.startswith("|"):
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith("|")), len(lines))
            header, _, *rows = [_cells(row) for row in lines[i:end]]
            items.append(Table(header, rows, title))
            title, i = "", end - 1
        else:
            items.append(Text(line.replace("`", "").replace("**", ""), title=title))
            title = ""
        i += 1
    return items


def _cells(row: str) -> list[str]:
    inner = row.strip().removeprefix("|").removesuffix("|").replace(r"\|", "\0")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]
