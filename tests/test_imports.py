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

# A room may import rooms of its own level and below. A module that is not listed belongs to the level of `data`.
LEVELS = {
    "errors": 0,
    "config": 1,
    "schedules": 2,
    "metrics": 2,
    "distributed": 2,
    "data": 3,
    "build": 4,
    "resume": 4,
    "trainer": 5,
    "evaluator": 5,
    "evaluation_run": 6,
    "extraction": 6,
    "gradcam": 6,
    "gradcam_images": 6,
    "transfer": 6,
    "doctor": 6,
    "quickstart": 7,
    "comparison": 7,
}
UNLISTED = LEVELS["data"]


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


def imported_rooms(file: Path) -> set[str]:
    """The rooms of ffcv_train (the second part of the dotted name) that a file imports."""
    dotted = [name.split(".") for name in imported_names(file)]
    return {parts[1] for parts in dotted if parts[0] == "ffcv_train" and len(parts) > 1}


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


@pytest.mark.parametrize("name", MODULES)
def test_rooms_import_downward(name: str) -> None:
    if name == "ffcv_train":
        return
    room = name.split(".")[1]
    for imported in imported_rooms(MODULES[name]) - {room}:
        assert LEVELS.get(imported, UNLISTED) <= LEVELS.get(room, UNLISTED), f"{name} imports {imported} from above"
    tops = {imported.split(".")[0] for imported in imported_names(MODULES[name])}
    assert not tops & {script.stem for script in SCRIPTS}, f"{name} imports a script"


def test_analysis_imports_no_training_code() -> None:
    forbidden = {"trainer", "evaluator", "evaluation_run", "build", "optim", "schedules", "resume", "losses", "data"}
    for name, file in MODULES.items():
        if name.startswith("ffcv_train.analysis"):
            assert not imported_rooms(file) & forbidden, name


def test_only_data_imports_ffcv() -> None:
    for name, file in MODULES.items():
        if not name.startswith("ffcv_train.data"):
            assert not [imported for imported in imported_names(file) if imported.split(".")[0] == "ffcv"], name


def test_importing_leaves_thread_counts() -> None:
    """`import ffcv` sets PyTorch to one thread; importing our rooms must not."""
    program = (
        "import torch, numba; torch.set_num_threads(2); before = torch.get_num_threads(), numba.get_num_threads()\n"
        "import ffcv_train.trainer, ffcv_train.evaluation_run, ffcv_train.data.writer\n"
        "assert (torch.get_num_threads(), numba.get_num_threads()) == before"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
