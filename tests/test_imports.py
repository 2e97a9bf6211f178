"""Imports: every module loads, only what requirements.txt declares is imported, and rooms import downward only."""

import ast
import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ffcv_train"
SCRIPTS = sorted([*ROOT.glob("*.py"), *ROOT.glob("viz/*.py"), *ROOT.glob("benchmarks/*.py")])


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported_names(file: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, also within functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str) -> None:
    importlib.import_module(name)


@functools.cache
def declared_modules() -> set[str]:
    """Top-level names that the distributions in requirements.txt install."""
    names = set()
    for distribution in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE):
        files = importlib.metadata.files(distribution)
        assert files, f"{distribution} is not installed"
        names |= {file.parts[0].split(".")[0] for file in files}
    return names


@pytest.mark.parametrize("file", [*MODULES.values(), *SCRIPTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_declared(file: Path) -> None:
    own = {"ffcv_train", "benchmarks", *(script.stem for script in SCRIPTS if script.parent == file.parent)}
    foreign = {name.split(".")[0] for name in imported_names(file)} - set(sys.stdlib_module_names) - own
    assert foreign <= declared_modules(), "requirements.txt does not declare what provides these"


def test_only_data_imports_ffcv() -> None:
    for name, file in MODULES.items():
        if not name.startswith("ffcv_train.data"):
            assert not [imported for imported in imported_names(file) if imported.split(".")[0] == "ffcv"], name


def test_importing_leaves_thread_counts() -> None:
    """`import ffcv` sets PyTorch to one thread; importing our rooms must not."""
    program = (
        "import torch, numba; torch.set_num_threads(2); before = torch.get_num_threads(), numba.get_num_threads()\n"
        "import ffcv_train.training.trainer, ffcv_train.evaluation.run, ffcv_train.data.convert.write\n"
        "assert (torch.get_num_threads(), numba.get_num_threads()) == before"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
