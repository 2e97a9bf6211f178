"""What version 0 wrote, read by today's commands: a comparison's folder and a file of logits.

The archive holds what compare.py and viz/logits.py of that version left, of ResNet-20 on the images of
tests/support/arithmetic_images.py: two criteria from two seeds each, of which one run was stopped by SIGTERM within its
second epoch, and under expected/ what that version itself went on to make of it. To be small, the networks have few
weights that are not zero; that version measured them so.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ffcv_train.cli import compare, logit_figures, measure, projection, report, train
from ffcv_train.comparison.plan import PlannedRun, measure_command, train_command
from ffcv_train.metrics.logits_file import read_logits
from tests.support.arithmetic_images import arithmetic_samples
from tests.support.photographs import write_stock_beton

ARCHIVE = Path(__file__).resolve().parents[1] / "data_files" / "comparison_of_version_0.tar.xz"
WORDS = [
    "--losses=ce,maxsup",
    "--seeds=0,1",
    "--out=comparison",
    "--data.train_dataset=train.beton",
    "--data.val_dataset=val.beton",
    "--data.num_workers=1",
    "--model.arch=cifar_resnet20",
    "--training.epochs=2",
    "--training.batch_size=16",
    "--training.device=cpu",
    "--training.amp=off",
    "--validation.batch_size=24",
    "--validation.resolution=32",
    "--validation.crop_ratio=1",
    "--resolution.min_res=32",
    "--resolution.max_res=32",
    "--lr.lr=0.05",
    "--lr.lr_peak_epoch=1",
    "--logging.tensorboard=0",
]
"""As that version was told"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as version 0 left it, with its data sets."""
    folder = tmp_path_factory.mktemp("left")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for name, count, shift in (("train", 48, 0), ("val", 24, 1000)):
        write_stock_beton(folder / f"{name}.beton", arithmetic_samples(count, shift), "raw", 4)
    return folder


@pytest.fixture
def here(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which this process is."""
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "comparison" / "comparison.json"
    settings.write_text(settings.read_text().replace("FOLDER", str(tmp_path.resolve())))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def check_measures(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for group in ("single", "flip_averaged", "train"):
        assert found[group] == pytest.approx(expected[group], rel=tolerance), group
    for group in ("train", "val"):
        assert found["features"][group] == pytest.approx(expected["features"][group], rel=tolerance), group


def test_a_run_of_a_comparison_is_measured_again(here: Path) -> None:
    plan = compare.parse_plan(WORDS)
    run = PlannedRun("maxsup", 0)
    file = plan.folder(run) / "measures.json"
    expected = read(file)
    file.unlink()
    measure.main(measure_command(plan, run)[4:])
    check_measures(read(file), expected, 1e-3)


def test_a_comparison_is_continued(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = compare.parse_plan(WORDS)
    stopped = PlannedRun("maxsup", 1)
    finished = {run: (plan.folder(run) / "measures.json").read_bytes() for run in plan.runs if run != stopped}
    # What compare.py starts as processes, then compare.py itself, which finds nothing left.
    train.main(train_command(plan, stopped)[4:])
    measure.main(measure_command(plan, stopped)[4:])
    expected = [json.loads(line) for line in (here / "expected" / "log.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in (plan.folder(stopped) / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in found] == [0, 1] and found[0] == expected[0]
    # Version 0 rounded crops' pixels otherwise.
    assert found[1]["train_loss"] == pytest.approx(expected[1]["train_loss"], rel=0.02)
    compare.main(WORDS)
    assert "4 runs, 4 finished before; 0 to go" in capsys.readouterr().out
    assert {run: (plan.folder(run) / "measures.json").read_bytes() for run in finished} == finished
    table = read(here / "comparison" / "compare.json")
    assert {name: row["seeds"] for name, row in table["criteria"].items()} == {"ce": [0, 1], "maxsup": [0, 1]}
    old = read(plan.folder(PlannedRun("ce", 1)) / "measures.json")
    assert table["criteria"]["ce"]["metrics"]["nll"]["values"][1] == old["single"]["nll"]
    report.main(["comparison", "--output", "report.html"])
    assert "maxsup_seed1" in (here / "report.html").read_text()


def test_logits_are_drawn(here: Path) -> None:
    assert read_logits(here / "logits.pt").need_features().shape == (24, 64)
    logit_figures.main(["--input", "logits.pt", "--labels", "ce", "--output", "again"])
    (found,) = read(here / "again" / "analysis.json")["inputs"]
    (expected,) = read(here / "expected" / "analysis.json")["inputs"]
    assert found["about"] == expected["about"]
    for key in ("samples", "classes", "top_1", "nll", "ece", "near_zero_share"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key
    for key in ("max_logit", "norm", "margin"):
        assert found["all"][key]["mean"] == pytest.approx(expected["all"][key]["mean"], rel=1e-5), key
    assert (here / "again" / "near_zero.png").stat().st_size > 10_000
    projection.main(["--input", "logits.pt", "--output", "again"])
    assert (here / "again" / "projection.png").stat().st_size > 10_000
