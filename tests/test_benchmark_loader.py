"""benchmarks/loader.py measures what it says, and refuses what it cannot measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ffcv_train.data.beton import open_beton


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_loader_reads_the_same_images(jpg_beton: Path, tmp_path: Path) -> None:
    found = run(
        *("--beton", jpg_beton, "--workers", 1, "--resolutions", "32", "--batch-size", 16, "--epochs", 1),
        *("--loaders", "ours,torchvision,webdataset,pillow", "--json", tmp_path / "out.json"),
    )
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    rows = {row["loader"]: row for row in report["rows"]}
    assert list(rows) == ["ours", "torchvision", "webdataset", "pillow"]
    assert {row["images"] for row in rows.values()} == {len(open_beton(jpg_beton)) // 16 * 16}
    for row in rows.values():
        assert row["mode"] == "jpg" and row["resolution"] == 32
        assert row["images_per_s_min"] <= row["images_per_s"] <= row["images_per_s_max"]
        assert row["images_per_s"] > 10 and 0 < row["first_batch_s"] < row["process_first_batch_s"]
        assert 50 < row["peak_memory_mb"] < 5000
    assert rows["ours"]["ratio"] == 1 and rows["pillow"]["ratio"] > 0
    assert "pillow" in found.stdout and "32 px" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "nowhere"], "nowhere is no folder"),
        (["--beton", "nothing.beton"], "nothing.beton does not exist"),
        (["--beton", "x", "--resolutions", "160,big"], "takes sides such as 160,224"),
        (["--beton", "x", "--loaders", "ours,fast"], "there is no loader 'fast'"),
        (["--folder", "x", "--modes", "png"], "there is no mode 'png'"),
        (["--beton", "x", "--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_bad_input_is_a_sentence(arguments: list[str], message: str) -> None:
    found = run(*arguments)
    assert found.returncode == 2 and message in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
