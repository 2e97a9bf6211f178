"""benchmarks/loader.py measures what it says, and refuses what it cannot measure."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import loader
from benchmarks.loading.files import from_beton
from benchmarks.loading.process import Contender
from ffcv_train.cli.main import run_main
from ffcv_train.data.format.beton import open_beton
from tests.support.photographs import ROOT


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.loader", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def test_every_loader_reads_the_same_images(
    jpg_beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        *("--beton", jpg_beton, "--workers", 1, "--resolutions", "32", "--batch-size", 16),
        *("--epochs", 1, "--seconds", 0.3),
        *("--loaders", "ours,torchvision,webdataset", "--json", tmp_path / "out.json"),
    )
    monkeypatch.setattr(sys, "argv", ["loader", *map(str, options)])
    loader.main()
    report = json.loads((tmp_path / "out.json").read_text())
    rows = {row["loader"]: row for row in report["rows"]}
    assert list(rows) == ["ours", "torchvision", "webdataset"]
    whole = len(open_beton(jpg_beton))
    for name, row in rows.items():
        assert row["images"] == row["passes"] * (whole if name == "webdataset" else whole // 16 * 16)
    assert rows["ours"]["passes"] > 1, "passes over 67 images are far shorter than an epoch must be"
    for row in rows.values():
        assert row["mode"] == "jpg" and row["resolution"] == 32
        assert row["images_per_s_min"] <= row["images_per_s"] <= row["images_per_s_max"]
        assert row["images_per_s"] > 10 and 0 < row["first_batch_s"] < row["process_first_batch_s"]
        assert 50 < row["peak_memory_mb"] < 5000 and 0 <= row["loader_memory_mb"] < row["peak_memory_mb"]
        assert row["other_cores"] >= 0
    assert rows["ours"]["ratio"] == 1 and rows["torchvision"]["ratio"] > 0
    printed = capsys.readouterr().out
    assert "webdataset" in printed and "32 px" in printed


def test_ffcv_competes(jpg_beton: Path, tmp_path: Path) -> None:
    """Once, and not in each test: it compiles for seconds at every start."""
    files, _ = from_beton(jpg_beton, tmp_path, 1)
    contender = Contender("ffcv", files, 32, 16, 1)
    try:
        assert contender.epoch()["images"] == len(open_beton(jpg_beton)) // 16 * 16
    finally:
        contender.close()


def test_a_timed_contender_has_the_cores_to_itself(jpg_beton: Path, tmp_path: Path) -> None:
    """Sampling memory while an epoch is timed once slowed the others more than ours, and so flattered ours."""
    files, _ = from_beton(jpg_beton, tmp_path, 1)
    contender = Contender("pillow", files, 32, 16, 1)
    try:
        contender.last(1.0)
        start, before = time.perf_counter(), time.process_time()
        found = contender.epoch()
        cores = (time.process_time() - before) / (time.perf_counter() - start)
    finally:
        contender.close()
    assert found["passes"] > 1 and found["seconds"] > 0.3
    assert cores < 0.05, f"the benchmark itself used {cores:.2f} cores during a timed epoch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "nowhere"], "nowhere is no folder"),
        (["--beton", "nothing.beton"], "nothing.beton does not exist"),
        (["--beton", "x", "--resolutions", "160,big"], "takes sides such as 160,224"),
        (["--beton", "x", "--loaders", "ours,fast"], "there is no loader 'fast'"),
        (["--folder", "x", "--modes", "png"], "there is no mode 'png'"),
        (["--beton", "x", "--epochs", "0"], "--epochs must be at least 1"),
        (["--beton", "x", "--resolutions", "0"], "a side has at least one pixel"),
        (["--beton", "x", "--seconds", "nan"], "--seconds must be above 0"),
        (["--beton", "x", "--modes", "jpg"], "--modes is for --folder"),
        (["--beton", "x", "--images", "9"], "--images is for --folder"),
        (["--beton", "x", "--loaders", "ours,ours"], "names 'ours' twice"),
        (["--beton", "x", "--loaders", "ours-no-tiles"], "there is no loader 'ours-no-tiles'"),
        (["--beton", "x", "--json", "nowhere/out.json"], "--json: nowhere is no folder"),
        (["--beton", "x", "--scratch", "nowhere"], "--scratch: nowhere is no folder"),
        (["--beton", str(ROOT / "README.md")], "README.md is not a .beton file"),
        (["--folder", "x", "--loaders", "torchvision"], "torchvision cannot read raw samples"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["loader", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(loader.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said, said
    assert "Traceback" not in said


def test_bad_input_of_the_program_is_a_sentence() -> None:
    found = run("--folder", "nowhere")
    assert found.returncode == 2 and "nowhere is no folder" in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
