"""eval.py --suite through the real script: records, figures, refusals, and the temperature in use."""

import itertools
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from ffcv_train import evaluate as evaluate_in_python
from ffcv_train import load_network
from ffcv_train.analysis.figures.suites import draw_suite
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.corruptions import CORRUPTIONS, corrupt
from ffcv_train.data.open import open_data_set
from ffcv_train.evaluation.extraction import outputs
from ffcv_train.evaluation.matching import matched
from ffcv_train.evaluation.subject import Subject
from ffcv_train.evaluation.suites import corruptions
from ffcv_train.evaluation.suites import run as suites_module
from ffcv_train.evaluation.suites.run import check_suites, run_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.evaluation.suites.variants import network_labels, real_accuracy, real_sets
from ffcv_train.metrics.groups import group_accuracy
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.metrics.selective import confidence_scores, selective
from ffcv_train.metrics.temperature import calibration, fit_temperature, split_halves
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.models.factory import create_model
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from tests.support.checkpoints import SMALL_EVALUATION, write_checkpoint
from tests.support.corruptions import frost_photographs
from tests.support.photographs import ROOT, Samples, crops_of_photographs, write_stock_beton

NAMES = ["class0", "class1", "class2", "class3"]


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.fixture
def checkpoint(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    data = [f"--data.train_dataset={small_betons[0]}", f"--data.val_dataset={small_betons[1]}"]
    config = load_config(RunConfig, ["--model.arch=cifar_resnet20", *SMALL_EVALUATION, *data])
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4)
    with torch.no_grad():
        model.fc.bias.normal_()
    (tmp_path / "run").mkdir()
    return write_checkpoint(tmp_path / "run" / "final.pt", config, model, NAMES, 4, ([0.5] * 3, [0.5] * 3))


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
    monkeypatch.delenv("COLUMNS", raising=False)
    # Of the program; a terminal that the tests run in is not where this goes.
    monkeypatch.setattr(sys, "__stdout__", None)
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
    for word in ("temperature fitted on half of", "AURC", "medium (4 classes)", "coverage at 1% risk", "temperature  "):
        assert word in printed  # whole, in a log
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
    with pytest.raises(Exception, match=r"holds no temperature for its model weights; fit one with"):
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


def test_variants_are_matched_by_name_and_absent_classes_left_out(
    suites: Callable[..., dict[str, Any]], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layouts of ImageNet-A, some of the classes, and of ImageNet-Sketch, all of them."""
    random = np.random.default_rng(5)
    some, whole = tmp_path / "imagenet-a", tmp_path / "sketch"
    images = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(8)]
    for number, image in enumerate(images):
        for folder, names in ((some, ("class3", "class1")), (whole, NAMES)):
            place = folder / names[number % len(names)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png")
    found = suites("--suite=variants", "--variant-data", some, whole)["suites"]["variants"]
    logits = by_hand(checkpoint, images)
    labels = torch.tensor([(3, 1)[number % 2] for number in range(8)])
    kept = logits[:, [1, 3]]
    first, second = found["sets"]
    assert (first["samples"], first["classes"], first["left_out"]) == (8, 2, 2)
    expected = torch.nn.functional.cross_entropy(kept, (labels == 3).long()).item()
    assert first["nll"] == pytest.approx(expected, rel=1e-4)
    assert first["top_1"] == pytest.approx(((kept.argmax(1) == 1) == (labels == 3)).float().mean().item())
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8) % 4).item()
    assert second["nll"] == pytest.approx(expected, rel=1e-4) and second["left_out"] == 0
    assert found["mean"]["top_1"] == pytest.approx((first["top_1"] + second["top_1"]) / 2)
    assert found["real"] is None
    assert "imagenet-a" in capsys.readouterr().out


def test_folders_called_by_numbers_are_labels_in_no_order_by_name(tmp_path: Path) -> None:
    names = [str(label) for label in range(12)]
    for name in names:
        (tmp_path / "v2" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "v2" / name / "0.png")
    data_set = open_data_set(tmp_path / "v2")
    found = network_labels(data_set, None, 12)
    assert data_set.class_names is not None
    assert [str(label) for label in found] == list(data_set.class_names)
    with pytest.raises(UserError, match="nothing names the network's classes"):
        network_labels(data_set, None, 13)
    in_order_of_text = tuple(sorted(names))  # a network that was trained on such folders
    assert network_labels(data_set, in_order_of_text, 12) == list(range(12))
    with pytest.raises(UserError, match="calls its classes by numbers, and the network's label 0 is 'a'"):
        network_labels(data_set, tuple("abcdefghijkl"), 12)  # in what order?
    with pytest.raises(UserError, match="calls two classes '1', which cannot be told apart"):
        network_labels(data_set, (*names, "1"), 13)


def test_real_counts_any_of_its_labels(tmp_path: Path) -> None:
    content = [[5], [], [1, 2], [3]]
    (tmp_path / "real.json").write_text(json.dumps(content))
    folder = tmp_path / "val"
    for name, number in (("a", 3), ("a", 1), ("b", 4), ("b", 2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name / f"ILSVRC2012_val_{number:08}.png")
    data_set = open_data_set(folder)
    wanted = real_sets(tmp_path / "real.json", data_set)
    order = [int(data_set.source.name(i).split("_")[-1].split(".")[0]) for i in range(4)]  # type: ignore[union-attr]
    assert wanted == [set(content[number - 1]) for number in order]
    predicted = [{1: 5, 2: 7, 3: 2, 4: 9}[number] for number in order]
    assert real_accuracy([1], [set()]) == {"samples": 0, "without_labels": 1, "top_1": None}
    assert real_accuracy(predicted, wanted) == {"samples": 3, "without_labels": 1, "top_1": pytest.approx(2 / 3)}
    with pytest.raises(UserError, match=r"does not say which image of ImageNet's validation set"):
        (folder / "a" / "x.png").write_bytes((folder / "a" / "ILSVRC2012_val_00000003.png").read_bytes())
        real_sets(tmp_path / "real.json", open_data_set(folder))


def test_real_labels_are_those_of_the_files(tmp_path: Path) -> None:
    """Of a network of 1,000 classes without names on part of ImageNet's validation set, in an order of its own."""
    random = np.random.default_rng(2)
    numbers = {"n01440764": (7, 2), "n01443537": (5, 3)}
    for folder, some in numbers.items():
        (tmp_path / "val" / folder).mkdir(parents=True)
        for number in some:
            image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08}.png")
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 1000).eval()
    predicted = {}
    for path in (tmp_path / "val").rglob("*.png"):
        x = (torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        with torch.no_grad():
            predicted[int(path.stem.rpartition("_")[2])] = int(model(x).argmax())
    # 2 and 7 right, by one label of several; 3 wrong; 5 has none.
    labels: list[list[int]] = [[] for _ in range(8)]
    labels[1], labels[2] = [predicted[2]], [(predicted[3] + 1) % 1000]
    labels[6] = [(predicted[7] + 1) % 1000, predicted[7]]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    wanted = SuiteOptions(("variants",), real_labels=str(tmp_path / "real.json"))
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    network = Network(model, 1000, Normaliser((0.5,) * 3, (0.5,) * 3, process.device), None)
    data_set, _ = matched(open_data_set(tmp_path / "val"), Subject("net", True, {}), 1000)
    check_suites(wanted, data_set, 1000)
    words = ["--validation.resolution=32", "--validation.crop_ratio=1", "--data.num_workers=1"]
    found = run_suites(wanted, network, load_config(RunConfig, words), data_set, process)["variants"]
    assert (found["sets"], found["mean"]) == ([], None)
    assert {key: found["real"][key] for key in ("samples", "without_labels")} == {"samples": 3, "without_labels": 1}
    assert found["real"]["top_1"] == pytest.approx(2 / 3)


@pytest.fixture
def frost(tmp_path: Path) -> Path:
    (tmp_path / "frost").mkdir()
    for name, image in frost_photographs().items():
        Image.fromarray(image).save(tmp_path / "frost" / name, "PNG")
    return tmp_path / "frost"


def by_hand(checkpoint: Path, images: Sequence[np.ndarray]) -> torch.Tensor:
    """Logits of images of 32 pixels, without our evaluation."""
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4).eval()
    model.load_state_dict(load_checkpoint(checkpoint)["model"])
    x = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        return model(x)


def test_corruptions_are_made_and_a_stop_loses_little(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    frost: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, labels = crops_of_photographs(5, 32, 32, seed=3), [0, 1, 2, 3, 0]
    data = write_stock_beton(tmp_path / "five.beton", Samples(images, labels), "raw", 4)
    words = [f"--data.val_dataset={data}", "--validation.batch_size=2", "--suite=corruptions", "--corruption-seed=3"]
    words += [f"--frost-images={frost}"]
    monkeypatch.setattr(corruptions, "_SAVE_SECONDS", 0.0)
    calls: list[int] = []

    def stopping(image: np.ndarray, name: str, severity: int, key: tuple[int, int], frost: Any) -> np.ndarray:
        calls.append(key[1])
        if key[1] == 2 and len(calls) < 300:
            raise KeyboardInterrupt
        return corrupt(image, name, severity, key, frost)

    monkeypatch.setattr(corruptions, "corrupt", stopping)
    with pytest.raises(SystemExit):
        suites(*words)
    assert set(calls) >= {0, 1, 2}
    assert len(list(checkpoint.parent.glob("*.part*"))) + len(list(checkpoint.parent.glob("*0of1.json"))) == 1
    calls[:] = [9] * 300
    found = suites(*words)["suites"]["corruptions"]
    assert sorted(set(calls)) == [2, 3, 4, 9]  # the first batch was kept
    assert not list(checkpoint.parent.glob("*0of1.json"))
    photographs = list(frost_photographs().values())
    for name, severity in (("gaussian_noise", 1), ("frost", 5), ("fog", 3)):
        changed = [corrupt(image, name, severity, (3, i), photographs) for i, image in enumerate(images)]
        logits = by_hand(checkpoint, changed)
        one = found["corruptions"][name][severity - 1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
        assert one["nll"] == pytest.approx(expected, rel=1e-4)
        assert one["error"] == pytest.approx((logits.argmax(1) != torch.tensor(labels)).float().mean().item())
    everything = [one for severities in found["corruptions"].values() for one in severities]
    assert len(everything) == 75
    assert found["mean"]["nll"] == pytest.approx(np.mean([one["nll"] for one in everything]))
    assert found["by_severity"][4]["ece"] == pytest.approx(
        np.mean([severities[4]["ece"] for severities in found["corruptions"].values()])
    )
    assert (found["constants"], found["mce"], found["samples"]) == ("cifar", None, 5)
    printed = capsys.readouterr().out
    assert "corruptions: error % by severity, 5 samples a corruption, made with seed 3" in printed
    assert {line.split()[0] for line in printed.splitlines() if line} >= set(CORRUPTIONS)  # no name is folded
    (axes,) = draw_suite("corruptions", [("", found)]).axes
    worst = max(np.mean([one["error"] for one in severities]) for severities in found["corruptions"].values())
    assert axes.get_ylim()[1] > 105 * worst  # its dot is whole
    assert (checkpoint.parent / "metrics_corruptions.png").stat().st_size > 5000


def test_a_stop_loses_no_finished_suite(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    small_betons: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--suite=calibration,selective,groups", "--validation.batch_size=16")
    whole = suites(*words)["suites"]
    ran: list[str] = []
    stop_at = ["groups"]

    def counted(name: str, run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def counting(examined: Any) -> dict[str, Any]:
            if name in stop_at:
                raise KeyboardInterrupt
            ran.append(name)
            return run(examined)

        return counting

    for name in ("calibration", "selective", "groups"):
        monkeypatch.setitem(suites_module.SUITES, name, counted(name, suites_module.SUITES[name]))
    with pytest.raises(SystemExit):
        suites(*words)
    part = checkpoint.parent / "metrics_suites.part.json"
    kept = part.read_bytes()
    stop_at.clear()
    assert suites(*words)["suites"] == whole
    assert ran == ["calibration", "selective", "groups"] and not part.exists()
    # Another question, other weights, or what is no such file: all anew.
    part.write_bytes(kept)
    assert suites(*words, "--split-seed=1")["suites"] != whole
    assert ran[3:] == ["calibration", "selective", "groups"]
    part.write_bytes(kept)
    assert suites(*words, "--tau=1")["suites"] != whole
    part.write_bytes(b"\xff{")
    assert suites(*words)["suites"] == whole and len(ran) == 12 and not part.exists()


def test_corruptions_are_made_of_some_samples_as_they_are_of_all(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    frost: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = ("gaussian_noise", "frost")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {name: CORRUPTIONS[name] for name in some})
    monkeypatch.setattr(corruptions, "_ALL", tuple(itertools.product(some, range(1, 6))))
    images, labels = crops_of_photographs(7, 32, 32, seed=3), [0, 1, 2, 3, 0, 1, 2]
    data = write_stock_beton(tmp_path / "seven.beton", Samples(images, labels), "raw", 4)
    words = [f"--data.val_dataset={data}", "--validation.batch_size=2", "--suite=corruptions", "--corruption-seed=3"]
    words += [f"--frost-images={frost}"]
    found = suites(*words, "--corruption-samples=3")["suites"]["corruptions"]
    chosen = sorted(np.random.default_rng(3).choice(7, 3, replace=False).tolist())
    assert chosen[-1] > 2  # numbers of their own would show
    truth = torch.tensor(labels)[chosen]
    photographs = list(frost_photographs().values())
    for name, severity in (("gaussian_noise", 5), ("frost", 3)):
        logits = by_hand(checkpoint, [corrupt(images[i], name, severity, (3, i), photographs) for i in chosen])
        one = found["corruptions"][name][severity - 1]
        assert one["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), rel=1e-4)
    assert found["samples"] == 3
    clean = torch.nn.functional.cross_entropy(by_hand(checkpoint, [images[i] for i in chosen]), truth).item()
    assert found["clean"]["nll"] == pytest.approx(clean, rel=1e-4)
    whole = suites(*words)["suites"]["corruptions"]
    assert suites(*words, "--corruption-samples=8")["suites"]["corruptions"] == whole
    assert whole["samples"] == 7


def test_prepared_corruptions_are_read_whole(
    suites: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        suites("--suite=corruptions", f"--corrupted-data={tmp_path}", "--corruption-samples=3")
    assert stopped.value.code == 2
    assert "--corruption-samples 3 is for corruptions that are made here" in capsys.readouterr().err


def test_prepared_corruptions_are_read(
    suites: Callable[..., dict[str, Any]],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = ("gaussian_noise", "fog")  # each folder has processes of its own
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {name: CORRUPTIONS[name] for name in some})
    monkeypatch.setattr(corruptions, "_ALL", tuple(itertools.product(some, range(1, 6))))
    folder, random = tmp_path / "ImageNet-C", np.random.default_rng(0)
    expected = {}
    for number, name in enumerate(some):
        for severity in range(1, 6):
            images = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in NAMES]
            for label, image in zip(NAMES, images, strict=True):
                # Lying as in the archives, and without the folders of kinds.
                place = folder / "kind" / name if number % 2 else folder / name
                (place / str(severity) / label).mkdir(parents=True)
                Image.fromarray(image).save(place / str(severity) / label / "0.png")
            expected[name, severity] = torch.nn.functional.cross_entropy(
                by_hand(checkpoint, images), torch.arange(4)
            ).item()
    found = suites("--suite=corruptions", f"--corrupted-data={folder}")["suites"]["corruptions"]
    assert found["samples"] == 4 and found["prepared"] == str(folder)
    for (name, severity), nll in expected.items():
        assert found["corruptions"][name][severity - 1]["nll"] == pytest.approx(nll, rel=1e-4)

    heads: list[str] = []

    def stopping(network: Network, config: Any, data: Any, process: Any, layer: Any, head: str) -> Any:
        heads.append(head)
        if heads.count("fog 2") == 1 and head == "fog 2":
            raise KeyboardInterrupt
        return outputs(network, config, data, process, layer, head)

    monkeypatch.setattr(corruptions, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(corruptions, "outputs", stopping)
    with pytest.raises(SystemExit):
        suites("--suite=corruptions", f"--corrupted-data={folder}")
    stopped_at = len(heads)
    assert suites("--suite=corruptions", f"--corrupted-data={folder}")["suites"]["corruptions"] == found
    assert heads[stopped_at:] == ["fog 2", "fog 3", "fog 4", "fog 5"]
    assert not list(checkpoint.parent.glob("*0of1.json"))

    shutil.rmtree(folder / "fog", ignore_errors=True)
    shutil.rmtree(folder / "kind" / "fog", ignore_errors=True)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        suites("--suite=corruptions", f"--corrupted-data={folder}")
    assert "has no folder fog/1" in capsys.readouterr().err


def test_cifar_10_c_is_read(checkpoint: Path, tmp_path: Path, small_betons: tuple[Path, Path]) -> None:
    """Its arrays hold the severities one after the other; the network must have CIFAR-10's classes."""
    folder, random = tmp_path / "CIFAR-10-C", np.random.default_rng(1)
    folder.mkdir()
    labels = np.tile([4, 9, 0], 5).astype(np.uint8)
    np.save(folder / "labels.npy", labels)
    arrays = {name: random.integers(0, 256, (15, 32, 32, 3), dtype=np.uint8) for name in CORRUPTIONS}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    torch.manual_seed(1)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 10).eval()
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    network = Network(model, 10, Normaliser((0.5,) * 3, (0.5,) * 3, process.device), None)
    options = ["--validation.resolution=32", "--validation.crop_ratio=1", "--validation.batch_size=2"]
    data_set = write_stock_beton(tmp_path / "c.beton", Samples(crops_of_photographs(2, 32, 32), [0, 9]), "raw")
    wanted = SuiteOptions(("corruptions",), corrupted_data=str(folder))
    beton = open_beton(data_set)
    check_suites(wanted, beton, 10)
    config = load_config(RunConfig, [*options, "--data.num_workers=1"])
    found = run_suites(wanted, network, config, beton, process)["corruptions"]
    for name in ("snow", "pixelate"):
        for severity in range(5):
            part = slice(3 * severity, 3 * severity + 3)
            x = (torch.from_numpy(arrays[name][part]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            with torch.no_grad():
                nll = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels[part]).long()).item()
            assert found["corruptions"][name][severity]["nll"] == pytest.approx(nll, rel=1e-4)
    with pytest.raises(UserError, match=r"holds CIFAR-10-C, and the network has 4 classes, not 10; leave"):
        check_suites(wanted, open_beton(small_betons[1]), 4)
    (folder / "fog.npy").unlink()
    with pytest.raises(UserError, match=r"lacks fog\.npy"):
        check_suites(wanted, beton, 10)


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
    other = write_stock_beton(tmp_path / "o.beton", Samples(crops_of_photographs(8, 32, 32), [0, 1] * 4), "raw", 4)
    names = {**json.loads(Path(f"{other}.json").read_text()), "class_names": ["class0", "cat", "class2", "class3"]}
    Path(f"{other}.json").write_text(json.dumps(names))
    cases: list[tuple[list[str], str]] = [
        (
            ["--suite=calibrate"],
            "'calibrate', which is no suite; there are calibration, selective, groups, ood, corruptions",
        ),
        (["--suite=groups,groups"], "twice"),
        (["--calibrate-on=x.beton"], "--calibrate-on is for --suite calibration"),
        (["--suite=calibration", "--calibrate-on=none.beton"], "none.beton does not exist"),
        (["--suite=groups", "--train-set=none.beton"], "--train-set FILE"),
        (["--suite=calibration", f"--calibrate-on={other}"], "has the class 'cat'"),
        (["--suite=groups", "--few-under=300"], "overlap"),
        (["--suite=calibration", "--split-seed=-1"], "--split-seed must be a whole number"),
        (["--suite=ood"], "--ood-data FILE"),
        (["--suite=ood", "--ood-data=none.beton"], "none.beton does not exist"),
        (["--suite=ood", f"--ood-data={other}", "--knn-k=97"], "has 96 samples, too few for the 97th neighbour"),
        (["--suite=ood", f"--ood-data={other}", "--knn-k=0"], "--knn-k must be at least 1"),
        (["--ood-data", str(other)], "--ood-data is for --suite ood"),
        (["--suite=corruptions", "--frost-images=none"], "none lacks a photograph of frost"),
        (["--suite=corruptions", "--corrupted-data=none"], "none has no folder gaussian_noise/1"),
        (["--corrupted-data=none"], "--corrupted-data is for --suite corruptions"),
        (["--suite=variants"], "--variant-data DATA … or --real-labels real.json"),
        (["--suite=variants", f"--variant-data={other}"], "has the class 'cat', which "),
        (["--suite=variants", f"--real-labels={other}"], "has 4 classes, not 1000"),
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
