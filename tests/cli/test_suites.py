"""eval.py --suite through the real script: records, figures, refusals, and the temperature in use."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from ffcv_train import evaluate as evaluate_in_python
from ffcv_train import load_network
from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.metrics.groups import group_accuracy
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.metrics.selective import confidence_scores, selective
from ffcv_train.metrics.temperature import calibration, fit_temperature, split_halves
from ffcv_train.models.checkpoint import load_checkpoint, save_checkpoint
from ffcv_train.models.factory import create_model
from tests.support.photographs import ROOT, Samples, crops_of_photographs, write_stock_beton

NAMES = ["class0", "class1", "class2", "class3"]


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.fixture
def checkpoint(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    settings = [
        *("--model.arch=cifar_resnet20", "--validation.resolution=32", "--validation.crop_ratio=1"),
        *("--validation.batch_size=16", "--training.device=cpu", "--training.amp=off", "--data.num_workers=1"),
        *(f"--data.train_dataset={small_betons[0]}", f"--data.val_dataset={small_betons[1]}"),
    ]
    config = load_config(RunConfig, settings)
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4)
    with torch.no_grad():
        model.fc.bias.normal_()
    state = {"model": model.state_dict(), "ema": None, "config": to_dict(config), "arch": "cifar_resnet20"}
    state |= {"num_classes": 4, "class_names": NAMES, "epoch": 1, "step": 0}
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "final.pt"
    save_checkpoint({**state, "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3}}, path)
    return path


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> Callable[..., dict[str, Any]]:
    def run(*words: object) -> dict[str, Any]:
        output = tmp_path / "run" / "metrics.json"
        run_script(monkeypatch, "eval.py", "--checkpoint", checkpoint, f"--output={output}", *words)
        return json.loads(output.read_text())

    return run


def logits_of(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, data: Path | None = None, *more: str) -> Any:
    """What viz/logits.py writes of the same network."""
    path = checkpoint.with_name("l.pt" if data is None else f"l_{data.stem}.pt")
    words = [f"--data.val_dataset={data}"] if data else []
    run_script(
        monkeypatch, "viz/logits.py", "--checkpoint", checkpoint, f"--output={path}", "--features", *words, *more
    )
    return read_logits(path)


def test_suites_are_the_statistics_of_the_networks_logits(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    small_betons: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = suites("--suite", "calibration,selective,groups", "--split-seed=3", "--many-over=30", "--few-under=10")
    printed = capsys.readouterr().out
    file = logits_of(monkeypatch, checkpoint)
    logits, labels = file.logits.clone(), file.labels.clone()
    first, second = split_halves(50, 3)
    found = report["suites"]["calibration"]
    fitted = fit_temperature(logits[first], labels[first])
    assert found["temperature"] == pytest.approx(fitted.value, rel=1e-4)
    assert found["fitted_on"] == {"data_set": str(small_betons[1]), "samples": 25, "split_seed": 3}
    for when, temperature in (("before", 1.0), ("after", fitted.value)):
        expected = calibration(logits[second], labels[second], temperature)
        for key in ("nll", "ece", "ece_mass", "brier", "top_1"):
            assert found[when][key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4)
    correct = (logits.argmax(1) == labels).numpy()
    for name, score in confidence_scores(logits).items():
        expected = selective(score, correct)
        assert report["suites"]["selective"]["scores"][name]["aurc"] == pytest.approx(expected["aurc"], rel=1e-3)
    counts = np.bincount(open_beton(small_betons[0]).labels)
    expected = group_accuracy(correct, labels.numpy(), counts, many_over=30, few_under=10)["groups"]
    assert report["suites"]["groups"]["groups"] == expected
    assert [c["name"] for c in report["suites"]["groups"]["classes"]] == NAMES
    for word in ("temperature fitted on half of", "AURC", "medium (4 classes)"):
        assert word in printed
    folder = checkpoint.parent
    assert all((folder / f"metrics_{suite}.png").stat().st_size > 5000 for suite in report["suites"])
    # The report takes them up.
    (folder / "log.jsonl").write_text(json.dumps({"epoch": 0, "train_loss": 1.0}) + "\n")
    run_script(monkeypatch, "viz/report.py", folder, "--output", folder.parent / "page.html")
    page = (folder.parent / "page.html").read_text()
    for word in ("Selective prediction", "Often and seldom seen classes", "before and after a temperature"):
        assert word in page


def test_a_temperature_of_another_set_is_kept_and_used(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    small_betons: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = load_checkpoint(checkpoint)
    report = suites("--suite=calibration", f"--calibrate-on={small_betons[0]}", "--keep-temperature")
    found = report["suites"]["calibration"]
    assert found["samples"] == 50
    file = logits_of(monkeypatch, checkpoint, small_betons[0])
    assert found["temperature"] == pytest.approx(fit_temperature(file.logits, file.labels).value, rel=1e-4)
    after = load_checkpoint(checkpoint)
    assert after.pop("temperature")["value"] == found["temperature"]
    assert after.keys() == before.keys()
    assert all(after["model"][key].equal(value) for key, value in before["model"].items())
    network = load_network(checkpoint, device="cpu")
    assert network.temperature == found["temperature"]
    image = crops_of_photographs(1, 32, 32)[0]
    plain, calibrated = network.predict(image), network.predict(image, calibrated=True)
    torch.testing.assert_close(calibrated, plain / found["temperature"])


def test_without_a_temperature_nothing_is_calibrated(checkpoint: Path) -> None:
    network = load_network(checkpoint, device="cpu")
    assert network.temperature is None
    with pytest.raises(Exception, match=r"holds no temperature for its model weights; fit one with eval\.py"):
        network.predict(crops_of_photographs(1, 32, 32), calibrated=True)


def test_tau_normalises_the_last_layer(
    suites: Callable[..., dict[str, Any]], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = logits_of(monkeypatch, checkpoint)
    features, weight = file.need_features().double().numpy(), file.need_weight().double().numpy()
    for tau in (0.0, 0.7, 1.0):
        report = suites(f"--tau={tau}", "--validation.lr_tta=0")
        logits = features @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T
        expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), file.labels.clone())
        assert report["results"][0]["nll"] == pytest.approx(expected.item(), rel=1e-4)
        assert report["tau"] == tau


def test_other_kinds_of_data_are_told_apart(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    small_betons: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(30)]
    other = write_stock_beton(tmp_path / "noise.beton", Samples(noise, [7] * 30), "raw")
    twin = write_stock_beton(tmp_path / "twin.beton", Samples(noise, [0] * 30), "raw")
    inside = logits_of(monkeypatch, checkpoint)
    labels = np.arange(80) < 50
    report = suites("--suite=ood", "--knn-k=5", "--ood-data", other, small_betons[1])
    first, second = report["suites"]["ood"]["sets"]
    assert second["shared_classes"] == NAMES
    assert all(found["auroc"] == pytest.approx(0.5) for found in second["scores"].values())
    inner = inside.logits.double().clone(), inside.need_features().clone()
    outside = logits_of(monkeypatch, checkpoint, twin)
    bank = logits_of(monkeypatch, checkpoint, small_betons[0]).need_features().numpy()
    logits = torch.cat([inner[0], outside.logits.double()])
    nearest = NearestNeighbors(n_neighbors=5).fit(normalize(bank))
    features = normalize(torch.cat([inner[1], outside.need_features()]).numpy())
    expected = {
        "probability": logits.softmax(1).amax(1).numpy(),
        "logit": logits.amax(1).numpy(),
        "energy": logits.logsumexp(1).numpy(),
        "knn": -nearest.kneighbors(features)[0][:, -1],
    }
    assert list(first["scores"]) == list(expected)
    for name, score in expected.items():
        # A few pairs whose scores nearly tie may change places.
        assert first["scores"][name]["auroc"] == pytest.approx(roc_auc_score(labels, score), abs=2e-3)
    assert report["suites"]["ood"]["neighbours"] == {"k": 5, "train_set": str(small_betons[0]), "samples": 96}
    printed = capsys.readouterr().out
    assert "50 samples against 30 of noise.beton" in printed
    assert "against 50 of val.beton, which has classes of the network: class0" in printed
    missing = suites("--suite=ood", "--train-set=none.beton", "--ood-data", other)["suites"]["ood"]
    assert missing["neighbours"] is None
    assert list(missing["sets"][0]["scores"]) == ["probability", "logit", "energy"]


def test_the_same_from_python(suites: Callable[..., dict[str, Any]], checkpoint: Path, small_betons: Any) -> None:
    report = suites("--suite=selective")
    found = evaluate_in_python(load_network(checkpoint, device="cpu"), small_betons[1], suites=["selective"])
    assert found["suites"]["selective"] == report["suites"]["selective"]
    with pytest.raises(ValueError, match="'selectiv', which is none of calibration"):
        evaluate_in_python(load_network(checkpoint, device="cpu"), small_betons[1], suites=["selectiv"])


def test_what_does_not_fit_is_one_sentence(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = write_stock_beton(tmp_path / "o.beton", Samples(crops_of_photographs(8, 32, 32), [0] * 8), "raw", 4)
    names = {**json.loads(Path(f"{other}.json").read_text()), "class_names": ["class0", "cat", "class2", "class3"]}
    Path(f"{other}.json").write_text(json.dumps(names))
    cases: list[tuple[list[str], str]] = [
        (["--suite=calibrate"], "'calibrate', which is no suite; there are calibration, selective, groups, ood"),
        (["--suite=groups,groups"], "twice"),
        (["--calibrate-on=x.beton"], "--calibrate-on is for --suite calibration"),
        (["--suite=calibration", "--calibrate-on=none.beton"], "none.beton does not exist"),
        (["--suite=calibration", f"--calibrate-on={other}"], "calls label 1 'cat'"),
        (["--suite=groups", "--train-set=none.beton"], "--train-set FILE"),
        (["--suite=groups", "--few-under=300"], "overlap"),
        (["--suite=calibration", "--split-seed=-1"], "--split-seed must be a whole number"),
        (["--suite=ood"], "--ood-data FILE"),
        (["--suite=ood", "--ood-data=none.beton"], "none.beton does not exist"),
        (["--suite=ood", f"--ood-data={other}", "--knn-k=97"], "has 96 samples, too few for the 97th neighbour"),
        (["--suite=ood", f"--ood-data={other}", "--knn-k=0"], "--knn-k must be at least 1"),
        (["--ood-data", str(other)], "--ood-data is for --suite ood"),
        (["--keep-temperature"], "add the suite"),
        (["--suite=calibration", "--keep-temperature", "--tau=1"], "drop --keep-temperature or --tau"),
        (["--tau=much"], "--tau must be a number"),
    ]
    capsys.readouterr()
    for words, expected in cases:
        with pytest.raises(SystemExit) as exit_:
            suites(*words)
        error = capsys.readouterr().err
        assert exit_.value.code == 2
        assert len(error.splitlines()) == 1
        assert expected in error
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["final.pt"]
