"""Rooms: what each may import is written here, once; docs/architecture.md draws this table."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ffcv_train"
MAY_IMPORT = {
    "system": "",
    "config": "system",
    "metrics": "system",
    "augment": "system config",
    "analysis": "system metrics",
    "models": "system config",
    "losses": "system config models",
    "data": "system config augment",
    "evaluation": "system config metrics models data",
    "training": "system config augment models losses data evaluation",
    "publish": "system config models data evaluation",
    "doctor": "system config augment models losses data evaluation training",
    "comparison": "system config metrics analysis models losses data evaluation training doctor",
    "cli": "system config metrics analysis models losses data evaluation training publish doctor comparison",
}
MAY_IMPORT_IN_DATA = {
    "kernels": "",
    "format": "kernels",
    "sources": "format",
    "classes": "",
    "convert": "sources format kernels",
    "loading": "sources format kernels",
    "open": "loading sources format kernels classes",
    "loader": "open loading sources format kernels",
    "write": "convert sources format",
}


def imported(file: Path) -> set[tuple[str, ...]]:
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
    return {
        tuple(f"{n.module}.{a.name}".split(".")[1:])
        for n in nodes
        for a in n.names
        if n.module.startswith("ffcv_train")
    }


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent != PACKAGE]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_stay_within_the_table(file: Path) -> None:
    room, *rest = file.relative_to(PACKAGE).with_suffix("").parts
    assert room in MAY_IMPORT, f"{room} is a new room: give it a line in the table"
    for target, *below in imported(file):
        if target == "__version__":  # the package's own
            continue
        assert target in {room, *MAY_IMPORT[room].split()}, f"{room} must not import {target}"
        if room == target == "data" and rest[0] != "__init__":
            assert below[0] in {rest[0], *MAY_IMPORT_IN_DATA[rest[0]].split()}, (
                f"data/{rest[0]} must not import {below[0]}"
            )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_cli_knows_the_command_line(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0]
    text = file.read_text()
    # fastargs, the face of the options, is handed an argparse parser.
    if room != "cli" and file != PACKAGE / "config" / "read.py":
        assert not any(word in text for word in ("ArgumentParser", "sys.argv", "run_main"))
    assert not any(word in text for word in ("sys.path.", "sys.path[", "parents[")), "a path out of the package"
