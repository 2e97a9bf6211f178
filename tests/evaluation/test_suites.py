"""What suites count and measure, against the network run by hand on the files themselves."""

import itertools
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from ffcv_train.analysis.figures.suites import draw_suite, suite_tables
from ffcv_train.cli import evaluate as eval_command
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.corruptions import CORRUPTIONS
from ffcv_train.data.open import DataSet, open_data_set
from ffcv_train.evaluation.matching import matched
from ffcv_train.evaluation.subject import Subject
from ffcv_train.evaluation.suites import corruptions
from ffcv_train.evaluation.suites.run import check_suites, run_suites
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.evaluation.suites.variants import real_sets
from ffcv_train.metrics.detection import detection, nearest_similarity
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from tests.support.checkpoints import SMALL_EVALUATION, varied_network, write_checkpoint
from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton
from tests.support.runs import Betons

CPU = torch.device("cpu")
NAMES = ("class0", "class1", "class2", "class3")
CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KEYS = imagenet_names().keys


def suites_of(
    options: SuiteOptions, model: nn.Module, outputs: int, data_set: DataSet, *words: str, names: Any = None
) -> dict[str, Any]:
    check_suites(options, data_set, outputs)
    network = Network(model, outputs, Normaliser((0.5,) * 3, (0.5,) * 3, CPU), None)
    config = load_config(RunConfig, [*SMALL_EVALUATION, *words])
    return run_suites(options, network, config, data_set, Process(0, 1, 0, 1, CPU), names)


def logits_by_hand(model: nn.Module, images: Sequence[np.ndarray], side: int = 32) -> torch.Tensor:
    """Of whole images, scaled to `side` by torchvision."""
    rows = []
    for image in images:
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        if x.shape[-1] != side:
            x = transforms.resize(x, [side, side], antialias=True)
        with torch.no_grad():
            rows.append(model((x / 255 - 0.5) / 0.5))
    return torch.cat(rows)


def nll(logits: torch.Tensor, labels: Sequence[int]) -> float:
    return nn.functional.cross_entropy(logits, torch.tensor(labels)).item()


@pytest.fixture
def one_corruption(monkeypatch: pytest.MonkeyPatch) -> str:
    name = "fog"
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {name: CORRUPTIONS[name]})
    monkeypatch.setattr(corruptions, "_ALL", tuple(itertools.product([name], range(1, 6))))
    return name


def test_prepared_images_are_not_cut_again(tmp_path: Path, one_corruption: str, small_betons: Betons) -> None:
    """ImageNet-C's were cut when they were made: its authors' test takes them as they are. Other sides are scaled."""
    model, images = varied_network(4, seed=0), crops_of_photographs(20, 32, 32, seed=4)
    images[16:] = crops_of_photographs(4, 44, 44, seed=5)
    for number, image in enumerate(images):
        place = tmp_path / "C" / one_corruption / str(1 + number // 4) / NAMES[number % 4]
        place.mkdir(parents=True)
        Image.fromarray(image).save(place / "0.png")
    options = SuiteOptions(("corruptions",), corrupted_data=str(tmp_path / "C"))
    val = open_beton(small_betons[1])
    found = suites_of(options, model, 4, val, "--validation.crop_ratio=0.875")["corruptions"]
    for severity, one in enumerate(found["corruptions"][one_corruption]):
        part = images[4 * severity : 4 * severity + 4]
        # Scaled images may differ by a level here and there.
        assert one["nll"] == pytest.approx(
            nll(logits_by_hand(model, part), range(4)), rel=1e-4 if severity < 4 else 5e-3
        )
    assert found["crop_ratio"] == 1
    assert suite_tables("corruptions", [("", found)])[0].title.endswith("of C, whole images")
    before = {key: value for key, value in found.items() if key != "crop_ratio"}
    assert suite_tables("corruptions", [("", before)])[0].title.endswith("of C")


def cifar_10_c(folder: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    folder.mkdir()
    labels = np.tile([4, 9, 0], 5).astype(np.uint8)
    np.save(folder / "labels.npy", labels)
    arrays = {name: np.stack(crops_of_photographs(15, 32, 32, seed=number)) for number, name in enumerate(names)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays, labels


def test_prepared_images_of_cifar_are_scaled_whole(tmp_path: Path, one_corruption: str) -> None:
    model = varied_network(10, seed=1)
    arrays, labels = cifar_10_c(tmp_path / "C", [one_corruption])
    path = write_stock_beton(tmp_path / "c.beton", Samples(crops_of_photographs(2, 32, 32), [0, 9]), "raw")
    options = SuiteOptions(("corruptions",), corrupted_data=str(tmp_path / "C"))
    words = ["--validation.resolution=36", "--validation.crop_ratio=0.875"]
    found = suites_of(options, model, 10, open_beton(path), *words)["corruptions"]["corruptions"][one_corruption]
    for severity, one in enumerate(found):
        part = slice(3 * severity, 3 * severity + 3)
        expected = nll(logits_by_hand(model, arrays[one_corruption][part], 36), labels[part].tolist())
        assert one["nll"] == pytest.approx(expected, rel=5e-3)


def test_cifar_10_c_under_other_names(tmp_path: Path, one_corruption: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal's advice is followed."""
    called = ("plane", "car", *CIFAR_10[2:])
    model = varied_network(10, seed=1)
    arrays, labels = cifar_10_c(tmp_path / "C", [one_corruption])
    config = load_config(RunConfig, ["--model.arch=cifar_resnet20", *SMALL_EVALUATION])
    checkpoint = write_checkpoint(tmp_path / "final.pt", config, model, called, 10, ([0.5] * 3, [0.5] * 3))
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        for number, (name, image) in enumerate(zip(called, crops_of_photographs(10, 32, 32), strict=True)):
            Image.fromarray(image).save(tmp_path / "image.png")
            archive.write(tmp_path / "image.png", f"{name}/{number}.png")
    lines = (f"{name}/{number}.png\t{number}\n" for number, name in enumerate(called))
    (tmp_path / "v_map.txt").write_text("".join(lines))
    words = [f"--checkpoint={checkpoint}", f"--data.val_dataset={tmp_path / 'v.zip'}", "--data.format=zip"]
    words += ["--suite=corruptions", f"--corrupted-data={tmp_path / 'C'}", f"--output={tmp_path / 'm.json'}"]
    with pytest.raises(UserError, match=r"calls label 0 'plane', CIFAR-10-C calls it 'airplane'") as stopped:
        eval_command.main(words)
    advice = str(stopped.value)
    listed = advice.partition("a line each: ")[2].partition(")")[0]
    assert "takes them with --data.classes" in advice and "pass --ignore-class-names" in advice
    (tmp_path / "names.txt").write_text(listed.replace(", ", "\n"))
    eval_command.main([*words, f"--data.classes={tmp_path / 'names.txt'}", "--ignore-class-names"])
    found = json.loads((tmp_path / "m.json").read_text())["suites"]["corruptions"]["corruptions"][one_corruption]
    expected = nll(logits_by_hand(model, arrays[one_corruption][:3]), labels[:3].tolist())
    assert found[0]["nll"] == pytest.approx(expected, rel=1e-4)


def test_only_what_was_trained_on_is_counted_and_near(small_betons: Betons, tmp_path: Path) -> None:
    """Of a checkpoint that was trained with data.subset and a file of weights."""
    model, train = varied_network(4, seed=2), open_beton(small_betons[0])
    # A tail: 24, 12, 6 and 3 of the classes, and of the last class one whose weight is 0.
    tail = np.concatenate([np.flatnonzero(train.labels == label)[:: 2**label] for label in range(4)])
    (tmp_path / "subset.txt").write_text("\n".join(map(str, tail)))
    weights = np.full(len(train), 0.5)
    weights[tail[-1]] = 0
    np.savetxt(tmp_path / "weights.txt", weights)
    words = [f"--data.train_dataset={small_betons[0]}", f"--data.val_dataset={small_betons[1]}"]
    words += [f"--data.subset={tmp_path / 'subset.txt'}", f"--data.sampling={tmp_path / 'weights.txt'}"]
    config = load_config(RunConfig, ["--model.arch=cifar_resnet20", *SMALL_EVALUATION, *words])
    checkpoint = write_checkpoint(tmp_path / "final.pt", config, model, NAMES, 4, ([0.5] * 3, [0.5] * 3))
    noise = list(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    other = write_stock_beton(tmp_path / "noise.beton", Samples(noise, [0] * 9), "raw")
    asked = ["--suite=groups,ood", "--many-over=20", "--few-under=5", "--knn-k=3", f"--ood-data={other}"]
    output = tmp_path / "m.json"

    def suites(*more: str) -> dict[str, Any]:
        eval_command.main([f"--checkpoint={checkpoint}", f"--output={output}", *asked, *more])
        return json.loads(output.read_text())["suites"]

    found = suites()
    assert [one["train"] for one in found["groups"]["classes"]] == [24, 12, 6, 2]
    assert found["groups"]["train_samples"] == 44
    assert {name: group["classes"] for name, group in found["groups"]["groups"].items()} == {
        "many": 1,
        "medium": 2,
        "few": 1,
        "unseen": 0,
    }
    assert found["ood"]["neighbours"]["samples"] == 44
    features = {}
    for name, path, samples in (
        ("bank", small_betons[0], tail[:-1]),
        ("inside", small_betons[1], range(50)),
        ("outside", other, range(9)),
    ):
        raw = open_beton(path)
        pixels = np.fromfile(path, np.uint8)
        images = [pixels[raw.ptrs[i] :][: 32 * 32 * 3].reshape(32, 32, 3) for i in samples]
        seen: list[torch.Tensor] = []
        hook = model.fc.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))  # type: ignore[union-attr, operator]
        logits_by_hand(model, images)
        hook.remove()
        features[name] = torch.cat(seen)
    near = [nearest_similarity(features[name], features["bank"], 3) for name in ("inside", "outside")]
    assert found["ood"]["sets"][0]["scores"]["knn"]["auroc"] == pytest.approx(detection(*near)["auroc"], abs=5e-3)
    # What is named is meant whole.
    whole = suites(f"--train-set={small_betons[0]}")
    assert [one["train"] for one in whole["groups"]["classes"]] == [24] * 4
    assert whole["ood"]["neighbours"]["samples"] == 96
    with pytest.raises(UserError, match=r"has 44 samples that were trained on, too few for the 50th"):
        suites("--knn-k=50")
    (tmp_path / "subset.txt").unlink()
    with pytest.raises(UserError, match=r"which samples of .* were trained on is not known .*--train-set FILE"):
        suites()


def test_a_temperature_is_not_fitted_to_what_is_measured(small_betons: Betons, tmp_path: Path) -> None:
    copy, model = tmp_path / "copy.beton", varied_network(4, seed=3)
    for suffix in ("", ".json"):
        shutil.copy(f"{small_betons[1]}{suffix}", f"{copy}{suffix}")
    val = open_beton(small_betons[1])
    for path in (small_betons[1], copy):
        with pytest.raises(UserError, match=r"is the validation set itself.*; give other samples, or leave it out"):
            suites_of(SuiteOptions(("calibration",), calibrate_on=str(path)), model, 4, val)
    # Folders of the same names are not the same images: a clean one and its corrupted twin.
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    for folder, seed in ((clean, 1), (noisy, 2)):
        for number, image in enumerate(crops_of_photographs(8, 32, 32, seed)):
            (folder / NAMES[number % 4]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / NAMES[number % 4] / f"{number}.png")
    options = SuiteOptions(("calibration",), calibrate_on=str(clean))
    assert suites_of(options, model, 4, open_data_set(noisy))["calibration"]["fitted_on"]["samples"] == 8
    shutil.copytree(noisy, tmp_path / "twin")
    with pytest.raises(UserError, match="is the validation set itself"):
        check_suites(SuiteOptions(("calibration",), calibrate_on=str(tmp_path / "twin")), open_data_set(noisy), 4)


def test_a_network_of_one_class(tmp_path: Path) -> None:
    """It is always right and always sure; nothing breaks."""
    images = crops_of_photographs(6, 32, 32)
    val = write_stock_beton(tmp_path / "one.beton", Samples(images, [0] * 6), "raw", 1)
    other = write_stock_beton(tmp_path / "other.beton", Samples(crops_of_photographs(5, 32, 32, 7), [0] * 5), "raw")
    options = SuiteOptions(("selective", "ood"), ood_data=(str(other),))
    found = suites_of(options, varied_network(1, seed=4), 1, open_beton(val))
    for score in ("probability", "logit", "margin"):
        assert found["selective"]["scores"][score]["aurc"] == 0
    assert found["ood"]["sets"][0]["scores"]["probability"]["auroc"] == 0.5


PERMUTED = tuple(np.random.default_rng(0).permutation(KEYS).tolist())


@pytest.mark.parametrize("names", [PERMUTED, KEYS, None, tuple(map(str, range(1000)))])
def test_imagenets_numbers_are_the_networks_classes_by_name(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    """ReaL's labels and ImageNet-V2's folders are numbers in ImageNet's order, whatever the network's."""
    order = names if names == PERMUTED else KEYS
    label_of = {key: label for label, key in enumerate(order)}
    chosen, images = (7, 999, 0, 30), crops_of_photographs(8, 32, 32, seed=6)
    for number, image in enumerate(images):
        key, v2 = tmp_path / "val" / KEYS[chosen[number % 4]], tmp_path / "v2" / str(chosen[number % 4])
        key.mkdir(parents=True, exist_ok=True)
        v2.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(key / f"ILSVRC2012_val_{number + 1:08}.png")
        Image.fromarray(image).save(v2 / f"{number}.png")
    model = varied_network(1000, seed=5)
    logits = logits_by_hand(model, images)
    kept = [label_of[KEYS[index]] for index in chosen]
    labels = [kept[number % 4] for number in range(8)]
    # Of the first five images what the network says, as ImageNet numbers it.
    said = [KEYS.index(order[label]) for label in logits.argmax(dim=1).tolist()]
    real = [[label, (label + 1) % 1000] for label in said[:5]] + [[(label + 1) % 1000] for label in said[5:7]] + [[]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    data_set, _ = matched(open_data_set(tmp_path / "val"), Subject("net", True, {}, class_names=names), 1000)
    options = SuiteOptions(("variants",), variant_data=(str(tmp_path / "v2"),), real_labels=str(tmp_path / "real.json"))
    found = suites_of(options, model, 1000, data_set, names=names)["variants"]
    absent = torch.full((1000,), -torch.inf)
    absent[kept] = 0
    assert found["sets"][0]["nll"] == pytest.approx(nll(logits + absent, labels), rel=1e-4)
    assert found["real"]["samples"] == 7 and found["real"]["top_1"] == pytest.approx(5 / 7)


def test_numbers_of_imagenet_for_classes_under_other_names(tmp_path: Path) -> None:
    called = ("tench", *KEYS[1:])
    (tmp_path / "val" / "tench").mkdir(parents=True)
    (tmp_path / "v2" / "0").mkdir(parents=True)
    for path in (tmp_path / "val" / "tench" / "ILSVRC2012_val_00000001.png", tmp_path / "v2" / "0" / "0.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (tmp_path / "real.json").write_text("[[]]")
    data_set, _ = matched(open_data_set(tmp_path / "val"), Subject("net", True, {}, class_names=called), 1000)
    with pytest.raises(UserError, match=r"the network has the class 'tench', whose number nothing says; leave it out"):
        check_suites(SuiteOptions(("variants",), real_labels=str(tmp_path / "real.json")), data_set, 1000)
    variants = SuiteOptions(("variants",), variant_data=(str(tmp_path / "v2"),))
    with pytest.raises(UserError, match=r"calls its classes by numbers, and the network's label 0 is 'tench'"):
        check_suites(variants, data_set, 1000)
    (tmp_path / "real.json").write_text("[[1000]]")
    with pytest.raises(UserError, match=r"has the label 1000, and ImageNet's are 0 … 999"):
        real_sets(tmp_path / "real.json", data_set)
    record = {"sets": [], "mean": None, "real": {"labels": "", "samples": 0, "without_labels": 1, "top_1": None}}
    assert suite_tables("variants", [("", record)])[0].rows[0][4] == "–"
    draw_suite("variants", [("", record)])
