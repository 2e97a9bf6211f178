"""The benchmark of the data formats, on small photographs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import formats
from ffcv_train.system.errors import UserError
from tests.support.photographs import ROOT, crops_of_photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(crops_of_photographs(24, 60, 90)):
        path = root / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return root


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.formats", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


def test_every_format_is_measured(folder: Path, tmp_path: Path) -> None:
    found = run(
        *("--folder", folder, "--workers", 1, "--memory-workers", 2, "--resolution", 32, "--batch-size", 8),
        *("--epochs", 2, "--repeats", 1, "--policy", "rand_augment", "--json", tmp_path / "out.json"),
    )
    assert found.returncode == 0, found.stderr
    rows = {row["format"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["beton", "zip", "zip, cached", "folder"]
    for row in rows.values():
        assert len(row["rates"]) == 2 and min(row["rates"]) <= row["images_per_s"] <= max(row["rates"])
    assert rows["beton"]["ratio"] == 1 and rows["beton"]["memory_mb"] is None
    assert all(1 < rows[name]["memory_mb"] < 5000 for name in rows if name != "beton")
    assert "zip, cached" in found.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--json", "nowhere/x.json"], "is no folder"),
        (["--batch-size", 25], "lower --training.batch_size"),
    ],
)
def test_bad_input_is_a_sentence(
    folder: Path, more: list[object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["formats", "--folder", str(folder), *map(str, more)])
    with pytest.raises(UserError, match=message):
        formats.main()
