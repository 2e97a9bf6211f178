"""Set-up: the bootstrap script, pinned requirements, Makefile, and what the quickstart prepares."""

import os
import re
import subprocess
from pathlib import Path

import cv2
import pytest

from ffcv_train.cli import quickstart
from ffcv_train.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SYSTEM_PATH = "/usr/bin:/bin"


def bash(script: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """A copy of what set-up reads, without .venv; returns the script."""
    (tmp_path / "tools").mkdir()
    for name in ("requirements.txt", "tools/setup.sh"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / "tools" / "setup.sh"


def fake_python(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", ["tools/setup.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert (ROOT / script).read_text().startswith("#!/usr/bin/env bash\n")


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    versions: dict[str, list[str]] = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)==[\w.]+(; python_version (?:>=|<) \"3\.11\")?", line)
        assert match, f"{line} is not pinned"
        versions.setdefault(match[1], []).append(match[2] or "")
    for name, markers in versions.items():
        pair = ['; python_version >= "3.11"', '; python_version < "3.11"']
        assert markers in ([""], pair), f"{name}: {markers} leave a Python version without a pin, or with two"


def test_unusable_interpreter_is_refused(bare_checkout: Path, tmp_path: Path) -> None:
    """A shim that exists but does not run, and a Python out of range, are named; nothing is created."""
    broken = fake_python(tmp_path / "bin", "python3.12", "exit 127")
    result = bash(bare_checkout, PYTHON=str(broken))
    assert result.returncode == 1
    assert f"{broken} does not run" in result.stderr
    newer = fake_python(tmp_path / "bin", "python3", "echo 3.14")
    result = bash(bare_checkout, PYTHON=str(newer))
    assert result.returncode == 1
    assert f"{newer} is 3.14" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_missing_system_packages_are_named_once(bare_checkout: Path, tmp_path: Path) -> None:
    """Without apt's rights, one message says what to install on each system."""
    python = fake_python(
        tmp_path / "bin", "python3.11", 'case "$2" in *version_info*) echo 3.11 ;; *ensurepip*) exit 1 ;; esac'
    )
    fake_python(tmp_path / "bin", "pkg-config", "exit 1")
    fake_python(tmp_path / "bin", "sudo", "exit 1")
    fake_python(tmp_path / "bin", "id", "echo 1000")
    result = bash(bare_checkout, PYTHON=str(python), PATH=f"{tmp_path / 'bin'}:{SYSTEM_PATH}")
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1
    for package in ("libopencv-dev", "libturbojpeg0-dev", "python3.11-venv"):
        assert package in result.stderr
    for system in ("Debian, Ubuntu", "Fedora", "conda", "macOS"):
        assert system in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_prints_its_targets() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"quickstart", "test", "lint"} <= set(targets)
    assert all(re.search(rf"^{target} ", printed, re.MULTILINE) for target in targets)


def test_quickstart_images(tmp_path: Path) -> None:
    """A stratified, repeatable split into class folders of 32 × 32 JPEG images that are not empty."""
    counts = quickstart.write_images(tmp_path / "a")
    quickstart.write_images(tmp_path / "b")
    assert counts == {"train": 1437, "val": 360}
    names = [{str(file.relative_to(tmp_path / run)) for file in (tmp_path / run).rglob("*.jpg")} for run in "ab"]
    assert names[0] == names[1]
    assert len({Path(name).name for name in names[0]}) == sum(counts.values())
    for digit in range(10):
        assert len(list((tmp_path / f"a/val/{digit}").iterdir())) in (35, 36, 37)
    image = cv2.imread(str(tmp_path / "a" / sorted(names[0])[0]))
    assert image is not None
    assert image.shape == (32, 32, 3)
    assert image.std() > 30


@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("--epochs=3", 2)])
def test_quickstart_takes_no_options_and_starts_nothing_when_given_some(
    word: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart.OUTPUT.mkdir()
    with pytest.raises(SystemExit) as caught:
        quickstart.main([word])
    assert caught.value.code == status and quickstart.OUTPUT.is_dir()


def test_quickstart_gives_commands_that_exist() -> None:
    for _, arguments in quickstart.commands(Path("out")):
        assert arguments[0] in COMMANDS


def test_set_up_gives_the_command_that_messages_name() -> None:
    done = subprocess.run([ROOT / ".venv/bin/ffcv-train", "--version"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("ffcv"), done.stderr
