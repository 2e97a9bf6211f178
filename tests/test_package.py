"""Packaging: one version, one list of dependencies, everything that is read at run time in the wheel."""

import ast
import email
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ffcv_train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_AT_RUN_TIME = ("Tests and linters", "What ffcv's source is built with")


def pins_at_run_time() -> dict[str, list[str]]:
    """The pinned versions of each distribution that requirements.txt wants for more than tests and builds."""
    pins: dict[str, list[str]] = {}
    # A heading, a line per distribution.
    for block in (ROOT / "requirements.txt").read_text().split("\n\n"):
        heading, *lines = block.strip().splitlines()
        if heading.removeprefix("# ") not in NOT_AT_RUN_TIME:
            for line in lines:
                match = re.match(r"([\w.-]+)==([\w.]+)", line)
                if match:
                    pins.setdefault(match[1], []).append(match[2])
    return pins


def test_dependencies_are_what_requirements_pin() -> None:
    """The same names; the lowest version allowed is the lowest that tests run with, and all pins are allowed."""
    pins = pins_at_run_time()
    extras = [text for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
    declared = {r.name: r.specifier for r in map(Requirement, [*PROJECT["project"]["dependencies"], *extras])}
    assert "torch" in declared
    assert declared.keys() == pins.keys()
    for name, specifier in declared.items():
        (bound,) = specifier
        assert bound.operator in (">=", "=="), name
        assert bound.version in pins[name], name
        assert all(version in specifier for version in pins[name]), name


def test_declared_dependencies_are_all_that_the_package_imports() -> None:
    """Nothing of the package needs what is pinned for the tests alone."""
    provided = {
        file.parts[0].split(".")[0] for name in pins_at_run_time() for file in importlib.metadata.files(name) or ()
    }
    for file in (ROOT / "ffcv_train").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"ffcv_train"}
            assert foreign <= provided, file


def test_one_version() -> None:
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ffcv_train.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ffcv_train.__version__
    assert f"## {ffcv_train.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The package's wheel, built without a network and without a trace in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["build", f"--build-base={folder / 'build'}", "egg_info", f"--egg-base={folder}"]
    words += ["bdist_wheel", f"--bdist-dir={folder / 'bdist'}", f"--dist-dir={folder}"]
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", *words]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_and_no_more(wheel: zipfile.ZipFile) -> None:
    """Every module, page, recipe and the mark of types; no tests, no scripts."""
    files = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "ffcv_train").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {Path(name).name for name in files if not name.endswith(".py")} >= {
        "quickstart.yaml",
        "page.html",
        "py.typed",
    }
    info = f"ffcv_train-{ffcv_train.__version__}.dist-info"
    held = {name for name in wheel.namelist() if not name.startswith(f"{info}/")}
    assert held == files
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"ffcv-train = ffcv_train.cli.main:main" in wheel.read(f"{info}/entry_points.txt")


def test_wheel_states_its_dependencies(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    about = email.message_from_bytes(wheel.read(name))
    needed = {str(r) for r in map(Requirement, about.get_all("Requires-Dist", [])) if r.marker is None}
    assert needed == {str(Requirement(text)) for text in PROJECT["project"]["dependencies"]}
    assert about["Version"] == ffcv_train.__version__ and about["License-Expression"] == "Apache-2.0"


def test_cites_both_papers() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert [r["identifiers"][0]["value"] for r in references] == ["arXiv:2502.15798", "arXiv:2306.12517"]


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", ".pre-commit-config.yaml"])
def test_papers_of_the_house(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


def test_workflow_runs_make_test() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])
