"""Reliability diagrams: what is drawn, and clear refusals."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from scipy.stats import binomtest

from ffcv_train.analysis.figures.reliability import draw_reliability
from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.metrics.calibration import read_calibration, wilson_interval
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json
from tests.support.photographs import ROOT


def metrics(scale: float = 1.0, count: int = 400) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=generator)
    logits = torch.randn(count, 10, generator=generator)
    logits[torch.arange(count), labels] += 2.0
    sums = MetricSums()
    sums.update(logits * scale, labels)
    return sums.compute()


def report(folder: Path, name: str = "m.json", **changes: Any) -> Path:
    results = [
        {"resolution": 224, **metrics(), "flip_averaged": metrics(0.5)},
        {"resolution": 256, **metrics(2.0)},
    ]
    write_json(folder / name, {"checkpoint": "runs/maxsup/final.pt", "results": results, **changes})
    return folder / name


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "viz" / "reliability.py"), *map(str, arguments)]
    # From elsewhere: the script finds its package by itself.
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60)


def test_the_script_draws(tmp_path: Path) -> None:
    first, second = report(tmp_path), report(tmp_path, "second.json")
    answer = run("--metrics", first, second, "--labels", "CE", "MaxSup", "--output", tmp_path / "figure.png")
    assert answer.returncode == 0, answer.stderr
    pixels = image.imread(tmp_path / "figure.png")[..., :3]
    assert min(pixels.shape[:2]) >= 1000
    assert (pixels.min(axis=2) < 0.9).mean() > 0.01  # not blank
    answer = run("--metrics", first, second, "--labels", "CE", "--output", tmp_path / "other.png")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 1 --labels do not name 2 --metrics")
    assert not (tmp_path / "other.png").exists()


def test_reads_the_result_asked_for(tmp_path: Path) -> None:
    path = report(tmp_path)
    first = read_calibration(path)
    assert (first.label, first.setting) == ("maxsup", "400 samples at 224 px")
    assert first.ece == metrics()["ece"]
    assert first.counts.sum() == 400
    assert np.isnan(first.accuracy[first.counts == 0]).all()
    assert read_calibration(path, resolution=256).nll == metrics(2.0)["nll"]
    flipped = read_calibration(path, flip_averaged=True, label="x")
    assert (flipped.label, flipped.ece) == ("x", metrics(0.5)["ece"])
    assert "flip-averaged" in flipped.setting


def test_draws_the_numbers(tmp_path: Path) -> None:
    curves = [read_calibration(report(tmp_path)), read_calibration(report(tmp_path), resolution=256)]
    figure = draw_reliability(curves)
    upper, lower = figure.axes
    lines = [line for line in upper.lines if line.get_marker() != "None"]
    for curve, line, steps in zip(curves, lines, lower.patches, strict=True):
        filled = curve.counts > 0
        np.testing.assert_array_equal(line.get_xdata(), curve.confidence[filled])
        np.testing.assert_array_equal(line.get_ydata(), curve.accuracy[filled])
        np.testing.assert_allclose(steps.get_data().values, curve.counts / 4.0)
        assert steps.get_data().values.sum() == pytest.approx(100)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0].startswith(f"maxsup: top-1 {curves[0].top_1:.2%}, NLL {curves[0].nll:.3f}, ECE {curves[0].ece:.2%}")
    # Told apart without colour.
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_formats(tmp_path: Path, ending: str) -> None:
    save_figure(draw_reliability([read_calibration(report(tmp_path))]), tmp_path / f"f.{ending}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert (tmp_path / f"f.{ending}").read_bytes().startswith(start)


def test_wilson_interval_equals_scipy() -> None:
    hits, counts = np.array([0, 3, 50, 7, 1]), np.array([5, 10, 100, 7, 1])
    low, high = wilson_interval(hits, counts, z=1.959963984540054)
    for i in range(5):
        expected = binomtest(int(hits[i]), int(counts[i])).proportion_ci(0.95, method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(wilson_interval(np.array([0]), np.array([0]))).all()


def test_metrics_that_are_not_finite_are_drawn(tmp_path: Path) -> None:
    broken = {"resolution": 224, **metrics(), "nll": None, "ece": None}
    curve = read_calibration(report(tmp_path, results=[broken]))
    assert np.isnan(curve.nll)
    save_figure(draw_reliability([curve]), tmp_path / "f.png")


def test_clear_refusals(tmp_path: Path) -> None:
    path = report(tmp_path)
    (tmp_path / "text.json").write_text("no json")
    for name, content in (("list.json", []), ("empty.json", {"results": []}), ("other.json", {"results": [{}]})):
        write_json(tmp_path / name, content)
        with pytest.raises(UserError, match="not a metrics file"):
            read_calibration(tmp_path / name)
    uneven = metrics()
    uneven["bins"]["count"][3] += 1
    with pytest.raises(UserError, match="not a metrics file"):
        read_calibration(report(tmp_path, "uneven.json", results=[{"resolution": 224, **uneven}]))
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(UserError, match="not JSON"):
        read_calibration(tmp_path / "text.json")
    with pytest.raises(UserError, match="no result at 160 px, only at 224, 256"):
        read_calibration(path, resolution=160)
    with pytest.raises(UserError, match="lr_tta"):
        read_calibration(path, resolution=256, flip_averaged=True)
    curve = read_calibration(path)
    for count in (0, 7):
        with pytest.raises(UserError, match=f"not {count}"):
            draw_reliability([curve] * count)
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        save_figure(draw_reliability([curve]), tmp_path / "figure.jpg")
    with pytest.raises(UserError, match="cannot write"):
        save_figure(draw_reliability([curve]), tmp_path / "no" / "folder.png")


def test_imports_no_training_code() -> None:
    code = "import sys; import ffcv_train.analysis.figures.reliability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
