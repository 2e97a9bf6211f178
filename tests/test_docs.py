"""What pages and docstrings name is there, and their examples hold."""

import ast
import doctest
import importlib
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ffcv_train
from tests.support.photographs import crops_of_photographs
from tools import api_page

ROOT = Path(__file__).resolve().parents[1]
MADE_HERE = {"runs", "quickstart_run", "build"}
FOLDERS = [
    folder for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != "." and folder.name not in MADE_HERE
]
FILES = [
    str(file.relative_to(ROOT))
    for file in sorted(
        [*ROOT.iterdir(), *(f for folder in FOLDERS if folder.name[0] != "." for f in folder.rglob("*"))]
    )
    if file.is_file()
]
PATH = re.compile(r"(?<![\w./<>{}*$-])((?:[\w.-]+/)*[\w.-]+\.(?:py|md|ya?ml|sh))(?![\w/*-])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
ELSEWHERE = {
    "write_imagenet.py",
    "references/classification/train.py",
    "train.sh",
    "validate.py",
    "comparison/compare.md",
}
"""FFCV's, torchvision's, MaxSup's, timm's, and what a command of a page writes"""


def prose(file: str) -> Iterator[str]:
    """The text of a page; the docstrings and comments of a program."""
    source = (ROOT / file).read_text()
    if file.endswith(".md"):
        yield source
        return
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    yield from filter(None, (ast.get_docstring(n) for n in ast.walk(ast.parse(source)) if isinstance(n, documented)))
    yield from (t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT)


def is_there(name: str, file: str) -> bool:
    """As a path from the root, the package or the naming file's folder; a bare name may lie anywhere."""
    places = (ROOT, ROOT / "ffcv_train", (ROOT / file).parent)
    return any((place / name).exists() for place in places) or any(known.endswith(f"/{name}") for known in FILES)


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith((".md", ".py"))])
def test_files_that_are_named_exist(file: str) -> None:
    named = {name for text in prose(file) for name in PATH.findall(text)}
    assert sorted(name for name in named - ELSEWHERE if not is_there(name, file)) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".md")])
def test_links_lead_somewhere(file: str) -> None:
    for target, anchor in LINK.findall((ROOT / file).read_text()):
        if ":" in target:
            continue
        page = (ROOT / file).parent / target if target else ROOT / file
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


SCRIPT = re.compile(r"\b(?:write_dataset|train_imagenet|eval|compare)\.py\b|\bviz/\w+\.py")


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("ffcv_train/") and file.endswith(".py")])
def test_the_package_names_commands_that_an_installed_one_has(file: str) -> None:
    constants = [
        node.value for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.Constant)
    ]
    assert [text for text in constants if isinstance(text, str) and SCRIPT.search(text)] == []


def test_the_page_of_names_is_up_to_date() -> None:
    assert api_page.page() == (ROOT / "docs" / "api.md").read_text(), "write it by make docs"
    listed = [name for names in api_page.SECTIONS.values() for name in names]
    assert sorted([*listed, "__version__"]) == sorted(ffcv_train.__all__)


EXAMPLES = [
    example
    for file in FILES
    if file.startswith("ffcv_train/") and file.endswith(".py") and ">>> " in (ROOT / file).read_text()
    for example in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    )
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_of_docstrings(
    example: doctest.DocTest,
    small_betons: tuple[Path, Path],
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder with the files that they name; what is exported is imported."""
    files = {"train.beton": small_betons[0], "val.beton": small_betons[1], "final.pt": small_run / "final.pt"}
    for name, file in files.items():
        (tmp_path / name).symlink_to(file)
    Image.fromarray(crops_of_photographs(1, 64, 64)[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exported = {name: getattr(ffcv_train, name) for name in ffcv_train.__all__}
    example.globs |= {**exported, "np": np, "torch": torch, "Image": Image}
    result = doctest.DocTestRunner().run(example)
    assert result.attempted and not result.failed


def test_the_split_of_cub_as_links(tmp_path: Path) -> None:
    """docs/data.md: CUB's images go where train_test_split.txt says, by class."""
    page = (ROOT / "docs/data.md").read_text()
    lines = page[page.index("paste -d") : page.index("for split in train val; do")]
    archive = tmp_path / "CUB_200_2011"
    names = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg"]
    for name in names:
        (archive / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(archive / "images" / name)
    (archive / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (archive / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    subprocess.run(["bash", "-euc", lines], cwd=tmp_path, check=True, timeout=60)
    found = {str(f.relative_to(tmp_path / "cub")) for f in (tmp_path / "cub").rglob("*.jpg") if f.is_file()}
    assert found == {"val/001.Albatross/a.jpg", "train/001.Albatross/b.jpg", "train/002.Auklet/c.jpg"}
