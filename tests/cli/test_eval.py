"""eval.py: from a checkpoint and a .beton to the numbers of a direct computation, or to one clear sentence."""

import argparse
import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.models.factory import create_model
from ffcv_train.system.environment import command_line
from tests.support.checkpoints import SMALL_EVALUATION, varied_network, write_checkpoint
from tests.support.photographs import ROOT, crops_of_photographs
from tests.support.runs import Betons, run_script

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASS_NAMES = [f"class{i}" for i in range(4)]
SETTINGS = ["--model.arch=cifar_resnet20", *SMALL_EVALUATION]


def network(seed: int) -> nn.Module:
    return varied_network(len(CLASS_NAMES), seed)


def logits_of(model: nn.Module, images: np.ndarray, mean: Any, std: Any) -> torch.Tensor:
    """Logits in float32 of uint8 images [N, H, W, 3], without any of our code but the network."""
    batch = (torch.from_numpy(images).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        return model.eval()(batch.permute(0, 3, 1, 2).contiguous())


@pytest.fixture(scope="module")
def val_images(small_betons: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and labels of the validation set, as conftest made them."""
    images = crops_of_photographs(50, 32, 32, seed=2)
    labels = np.arange(50) % 4
    for image, label in zip(images, labels, strict=True):
        image[:, :, label % 3] = image[:, :, label % 3] // 2 + (64 if label == 3 else 127)
    return np.stack(images), labels


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_betons: tuple[Path, Path]) -> Callable[..., Path]:
    """A checkpoint as the trainer writes it; keyword arguments replace its entries."""

    def make(**entries: Any) -> Path:
        config = load_config(RunConfig, [*SETTINGS, f"--data.val_dataset={small_betons[1]}"])
        path = tmp_path_factory.mktemp("run") / "final.pt"
        return write_checkpoint(path, config, network(0), CLASS_NAMES, 4, (MEAN, STD), **entries)

    return make


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict]:
    """Run the real script in this process and return what it wrote."""

    def run(*arguments: object) -> dict:
        output = tmp_path / "out" / "metrics.json"
        words = [str(argument) for argument in arguments]
        if not any(word.startswith("--output") for word in words):
            words += ["--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["eval.py", *words])
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
        return json.loads(output.read_text())

    return run


@pytest.fixture
def error_of(evaluate: Callable[..., dict], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one error that the script prints when it refuses, after its notes, having exited with status 2."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            evaluate(*arguments)
        lines = capsys.readouterr().err.splitlines()
        assert exit_.value.code == 2
        assert lines[-1].startswith("error: ")
        assert all(line.startswith(("note: ", "took ")) for line in lines[:-1])
        return lines[-1]

    return run


def check(metrics: dict, logits: torch.Tensor, labels: np.ndarray) -> None:
    scores = torch.softmax(logits.double(), dim=1).numpy()
    assert metrics["count"] == len(labels)
    assert metrics["top_1"] == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)))
    assert metrics["top_5"] == 1.0  # of four classes
    assert metrics["nll"] == pytest.approx(log_loss(labels, scores, labels=range(4)), rel=1e-4)
    assert sum(metrics["bins"]["count"]) == len(labels)


def test_the_checkpoint_is_all_it_needs(
    checkpoint: Path, evaluate: Callable[..., dict], val_images: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = val_images
    report = evaluate("--checkpoint", checkpoint)
    views = [logits_of(network(0), pixels, MEAN, STD) for pixels in (images, images[:, :, ::-1].copy())]
    (result,) = report["results"]
    assert result["resolution"] == 32
    check(result, views[0], labels)
    check(result["flip_averaged"], (views[0] + views[1]) / 2, labels)
    assert report["weights"] == "model"
    assert report["normalisation"] == {"mean": list(MEAN), "std": list(STD)}
    assert (report["arch"], report["num_classes"], report["samples"], report["epoch"]) == ("cifar_resnet20", 4, 50, 3)
    assert report["versions"]["torch"]
    assert report["command"] == command_line()
    assert result["seconds"] > 0
    printed = capsys.readouterr().out
    assert f"{100 * result['top_1']:.2f}" in printed
    assert "flip-averaged" in printed
    assert "metrics.json" in printed


def test_several_resolutions_and_a_single_view(checkpoint: Path, evaluate: Callable[..., dict]) -> None:
    report = evaluate("--checkpoint", checkpoint, "--validation.resolution=40,32,40", "--validation.lr_tta=0")
    assert [result["resolution"] for result in report["results"]] == [40, 32]
    assert all(result["count"] == 50 for result in report["results"])
    assert not any("flip_averaged" in result for result in report["results"])
    assert report["results"][0]["nll"] != report["results"][1]["nll"]


def test_averaged_weights_are_the_default_where_there_are_some(
    make_checkpoint: Callable[..., Path],
    evaluate: Callable[..., dict],
    val_images: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_checkpoint(ema=network(5).state_dict())
    for wish, seed, used in (("auto", 5, "ema"), ("ema", 5, "ema"), ("model", 0, "model")):
        report = evaluate("--checkpoint", path, "--weights", wish, "--validation.lr_tta=0")
        assert report["weights"] == used
        assert f"(cifar_resnet20, {'averaged' if used == 'ema' else 'plain'} weights) on" in capsys.readouterr().out
        check(report["results"][0], logits_of(network(seed), val_images[0], MEAN, STD), val_images[1])


def test_averaged_weights_of_other_programs_are_taken_where_they_exist(
    evaluate: Callable[..., dict], error_of: Callable[..., str], small_betons: Betons, val_images: Any, tmp_path: Path
) -> None:
    plain, averaged, path = network(0), network(5), tmp_path / "model_best.pth.tar"
    arguments = ["--checkpoint", path, f"--data.val_dataset={small_betons[1]}", *SETTINGS, "--validation.lr_tta=0"]
    arguments += [f"--data.{name}={','.join(map(str, value))}" for name, value in (("mean", MEAN), ("std", STD))]

    def write(**entries: Any) -> None:
        torch.save({"arch": "cifar_resnet20", "state_dict": plain.state_dict(), **entries}, path)

    write()
    assert "holds no averaged weights; use --weights model" in error_of(*arguments, "--weights", "ema")
    assert evaluate(*arguments)["weights"] == "model"
    write(state_dict_ema=averaged.state_dict())
    for wish, model, used in (("auto", averaged, "ema"), ("ema", averaged, "ema"), ("model", plain, "model")):
        report = evaluate(*arguments, "--weights", wish)
        assert report["weights"] == used
        check(report["results"][0], logits_of(model, val_images[0], MEAN, STD), val_images[1])
    write(state_dict_ema={"decoder.weight": torch.zeros(3)})
    assert "averaged weights in" in error_of(*arguments)


def test_the_architecture_that_a_file_names_is_proposed(
    error_of: Callable[..., str], small_betons: Betons, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    data = ["--checkpoint", path, f"--data.val_dataset={small_betons[1]}"]
    torchvisions, timms = torchvision.models.mnasnet0_5(), timm.create_model("test_vit")
    efficientnet = timm.create_model("efficientnet_b0").state_dict()
    for content, proposal in (
        ({"arch": "mnasnet0_5", "state_dict": torchvisions.state_dict()}, "mnasnet0_5"),
        ({"model": timms.state_dict(), "args": argparse.Namespace(model="test_vit")}, "test_vit"),
        # Torchvision has one of this name, and other keys.
        ({"args": argparse.Namespace(model="efficientnet_b0"), "model": efficientnet}, "timm/efficientnet_b0"),
        ({"arch": "our_own_net", "state_dict": timms.state_dict()}, None),
    ):
        torch.save(content, path)
        message = error_of(*data)
        ending = f"and says that it is of {proposal}; if so, pass --model.arch={proposal}"
        if proposal is None:
            ending = "does not say what network it is of; name it with --model.arch"
        assert message.endswith(ending), message
    torch.save({"arch": "mnasnet0_5", "state_dict": torchvisions.state_dict()}, path)
    assert "says that it is of mnasnet0_5" in error_of(*data, *SETTINGS)
    (tmp_path / "own.yaml").write_text("validation: {batch_size: 8}\n")  # names no network either
    assert "says that it is of mnasnet0_5; if so, pass" in error_of(*data, f"--config-file={tmp_path}/own.yaml")


def test_two_processes_find_the_same(checkpoint: Path, evaluate: Callable[..., dict], tmp_path: Path) -> None:
    single = evaluate("--checkpoint", checkpoint)
    output = tmp_path / "two.json"
    answer = run_script([f"--checkpoint={checkpoint}", f"--output={output}"], 2, "eval.py")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("top-1") == 1  # rank 0 alone prints
    report = json.loads(output.read_text())
    assert report["world_size"] == 2
    (a,), (b,) = report["results"], single["results"]
    for x, y in ((a, b), (a["flip_averaged"], b["flip_averaged"])):
        assert (x["count"], x["top_1"], x["top_5"]) == (y["count"], y["top_1"], y["top_5"])
        assert x["nll"] == pytest.approx(y["nll"], rel=1e-6)
        assert x["bins"]["count"] == y["bins"]["count"]


def test_a_torchvision_state_dict(
    evaluate: Callable[..., dict], small_betons: tuple[Path, Path], val_images: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    report = evaluate(
        "--checkpoint",
        tmp_path / "weights.pth",
        f"--data.val_dataset={small_betons[1]}",
        *SMALL_EVALUATION,
        "--model.arch=shufflenet_v2_x0_5",
        "--validation.lr_tta=0",
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert report["normalisation"] == {"mean": list(mean), "std": list(std)}
    check(report["results"][0], logits_of(model, val_images[0], mean, std), val_images[1])


def test_a_timm_safetensors_file_with_more_classes(
    evaluate: Callable[..., dict],
    error_of: Callable[..., str],
    small_betons: tuple[Path, Path],
    val_images: Any,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    arguments = ["--checkpoint", path, f"--data.val_dataset={small_betons[1]}", *SMALL_EVALUATION]
    arguments += ["--model.arch=timm/test_resnet", "--validation.lr_tta=0"]
    for extra in ([], ["--model.num_classes=7"]):
        message = error_of(*arguments, *extra)
        assert "has 7 classes without names" in message
        assert "has 4; list all 7" in message
    assert "model.num_classes is 6" in error_of(*arguments, "--model.num_classes=6")

    cfg = timm.get_pretrained_cfg("test_resnet")
    logits = logits_of(model, val_images[0], cfg.mean, cfg.std)
    report = evaluate(*arguments, "--ignore-class-names")
    assert report["num_classes"] == 7
    assert report["normalisation"]["mean"] == list(cfg.mean)
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(val_images[1])).item()
    assert report["results"][0]["nll"] == pytest.approx(expected, rel=1e-4)


def test_without_a_sidecar_the_checkpoint_decides(
    checkpoint: Path, evaluate: Callable[..., dict], small_betons: tuple[Path, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare.beton"
    shutil.copy(small_betons[1], bare)
    assert evaluate("--checkpoint", checkpoint, f"--data.val_dataset={bare}")["samples"] == 50
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=9)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    report = evaluate(
        "--checkpoint",
        tmp_path / "weights.pth",
        f"--data.val_dataset={bare}",
        *SMALL_EVALUATION,
        "--model.arch=shufflenet_v2_x0_5",
    )
    assert report["num_classes"] == 9


def with_names(beton: Path, folder: Path, names: list[str]) -> Path:
    """A copy of a data set with other class names."""
    path = folder / "named.beton"
    shutil.copy(beton, path)
    sidecar = json.loads(Path(f"{beton}.json").read_text())
    Path(f"{path}.json").write_text(json.dumps({**sidecar, "class_names": names}))
    return path


def test_class_names_that_differ(
    checkpoint: Path,
    evaluate: Callable[..., dict],
    error_of: Callable[..., str],
    small_betons: tuple[Path, Path],
    val_images: Any,
    tmp_path: Path,
) -> None:
    other = with_names(small_betons[1], tmp_path, ["class0", "class2", "class1", "class3"])
    logits = logits_of(network(0), val_images[0], MEAN, STD)
    for extra, labels in (([], np.array([0, 2, 1, 3])[val_images[1]]), (["--ignore-class-names"], val_images[1])):
        report = evaluate("--checkpoint", checkpoint, f"--data.val_dataset={other}", "--validation.lr_tta=0", *extra)
        check(report["results"][0], logits, labels)
        assert len(report["notes"]) == 1
    strange = with_names(small_betons[1], tmp_path, ["class0", "dog", "class1", "class3"])
    message = error_of("--checkpoint", checkpoint, f"--data.val_dataset={strange}")
    assert "has the class 'dog', which " in message
    assert "pass --ignore-class-names" in message
    fewer = with_names(small_betons[1], tmp_path, ["class0", "class2", "class1"])
    message = error_of("--checkpoint", checkpoint, f"--data.val_dataset={fewer}")
    assert "sample 3 " in message
    assert "has the label 3, but 3 classes are named" in message


def test_a_label_out_of_range(make_checkpoint: Callable[..., Path], error_of: Callable[..., str]) -> None:
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 3)
    path = make_checkpoint(model=model.state_dict(), num_classes=3, class_names=CLASS_NAMES[:3])
    message = error_of("--checkpoint", path, "--ignore-class-names")
    assert "label 3" in message
    assert "3 classes" in message
    assert "sample 3 " in message


def test_bad_input_is_one_sentence(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    error_of: Callable[..., str],
    small_betons: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    data = f"--data.val_dataset={small_betons[1]}"
    garbage, plain, truncated = tmp_path / "garbage.pt", tmp_path / "plain.pt", tmp_path / "cut.pt"
    garbage.write_bytes(b"not a checkpoint" * 100)
    torch.save(network(0).state_dict(), plain)
    truncated.write_bytes(checkpoint.read_bytes()[:5000])
    beton = tmp_path / "truncated.beton"
    beton.write_bytes(small_betons[1].read_bytes()[:2000])
    (tmp_path / "folder").mkdir()
    nowhere = make_checkpoint(config=to_dict(load_config(RunConfig, SETTINGS)))
    cases: list[tuple[list[object], str]] = [
        ([], "--checkpoint FILE"),
        (["--checkpoint", tmp_path / "none.pt"], "none.pt does not exist"),
        (["--checkpoint", garbage, data], "garbage.pt is not a checkpoint"),
        (["--checkpoint", truncated, data], "cut.pt is not a checkpoint"),
        (["--checkpoint", plain, data], "--model.arch"),
        (["--checkpoint", plain, data, "--model.arch=resnet18"], "does not fit resnet18"),
        (["--checkpoint", plain, data, "--model.arch=resnet81"], "resnet81"),
        (["--checkpoint", checkpoint, "--model.arch=cifar_resnet32"], "a checkpoint of cifar_resnet20"),
        (["--checkpoint", checkpoint, "--model.num_classes=5"], "has 4 classes, not 5"),
        (["--checkpoint", checkpoint, "--weights", "ema"], "no averaged weights"),
        (["--checkpoint", nowhere], "data.val_dataset is not set"),
        (["--checkpoint", checkpoint, "--data.val_dataset=none.beton"], "none.beton does not exist"),
        (["--checkpoint", checkpoint, f"--data.val_dataset={beton}"], "truncated"),
        (["--checkpoint", checkpoint, "--validation.resolutoin=32"], "did you mean 'validation.resolution'"),
        (["--checkpoint", checkpoint, "--validation.resolution=big"], "must be a whole number"),
        (["--checkpoint", checkpoint, "--data.mean=0.5,0.5,0.5", "--data.std="], "belong together"),
        (["--checkpoint", checkpoint, "--output", tmp_path / "folder"], "is a folder"),
        (["--checkpoint", checkpoint, "--output", garbage / "m.json"], "cannot write"),
    ]
    if not torch.cuda.is_available():
        cases.append((["--checkpoint", checkpoint, "--training.device=cuda"], "no GPU"))
    for arguments, expected in cases:
        assert expected in error_of(*arguments)


def test_a_resolution_that_the_model_refuses(
    error_of: Callable[..., str], small_betons: tuple[Path, Path], tmp_path: Path
) -> None:
    model = timm.create_model("test_vit", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    arguments = ["--checkpoint", tmp_path / "vit.pth", f"--data.val_dataset={small_betons[1]}", *SMALL_EVALUATION]
    message = error_of(*arguments, "--model.arch=test_vit", "--validation.resolution=160,40")
    assert "40 x 40" in message


def test_an_old_report_survives_a_failed_run(checkpoint: Path, error_of: Callable[..., str], tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    output.write_text("old")
    error_of("--checkpoint", checkpoint, "--data.val_dataset=none.beton", "--output", output)
    assert output.read_text() == "old"


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--checkpoint", "--output", "--weights", "--ignore-class-names", "--validation.resolution"):
        assert option in printed


def test_per_class(
    checkpoint: Path,
    evaluate: Callable[..., dict],
    error_of: Callable[..., str],
    val_images: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A row per class and the errors, of the single view at the first resolution; the metrics have them too."""
    table = tmp_path / "new" / "classes.csv"
    report = evaluate("--checkpoint", checkpoint, "--validation.resolution=32,40", f"--per-class={table}")
    images, labels = val_images
    predicted = logits_of(network(0), images, MEAN, STD).argmax(1).numpy()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == CLASS_NAMES
    for label, row in enumerate(rows):
        assert int(row["count"]) == (labels == label).sum()
        assert int(row["predicted"]) == (predicted == label).sum()
        assert float(row["recall"]) == pytest.approx((predicted[labels == label] == label).mean())
    with table.with_name("classes_errors.csv").open(newline="") as file:
        errors = {(int(r["label"]), int(r["predicted_label"])): int(r["count"]) for r in csv.DictReader(file)}
    wrong = predicted != labels
    assert sum(errors.values()) == wrong.sum() > 0
    assert all(((labels == t) & (predicted == p)).sum() == n for (t, p), n in errors.items())
    assert table.with_name("classes_confusion.png").stat().st_size > 5000
    assert report["per_class"]["resolution"] == 32
    assert report["per_class"]["names"] == CLASS_NAMES
    assert "Most frequent errors" in capsys.readouterr().out
    assert "must end in .csv" in error_of("--checkpoint", checkpoint, "--per-class=classes.json")


def test_names_of_classes_do_not_steer_the_terminal(
    make_checkpoint: Callable[..., Path],
    evaluate: Callable[..., dict],
    small_betons: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"\x1b[3{i}m[red]{i}" for i in range(4)]
    checkpoint = make_checkpoint(class_names=names)
    data = with_names(small_betons[1], tmp_path, names)
    evaluate("--checkpoint", checkpoint, f"--data.val_dataset={data}", f"--per-class={tmp_path}/c.csv")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[31m[red]1" in printed


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs of 300 to 400 pixels a side in 3 classes."""
    root = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(crops_of_photographs(12, 300, 400, seed=4)):
        folder = root / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_published_weights_are_evaluated_as_their_library_does(
    evaluate: Callable[..., dict], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm's bicubic 160 pixels of 168, against its own transform; what is told has precedence, in either way."""
    torch.manual_seed(0)
    model, cfg = timm.create_model("test_vit", num_classes=3).eval(), timm.get_pretrained_cfg("test_vit")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg.to_dict()))
    files = sorted(photographs.glob("*/*.png"))
    labels = torch.tensor([int(file.parent.name[-1]) for file in files])
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    arguments = ["--checkpoint", tmp_path / "weights.pth", "--model.arch=test_vit", "--data.format=folder"]
    arguments += [f"--data.val_dataset={photographs}", "--validation.lr_tta=0", *SMALL_EVALUATION[3:]]
    report = evaluate(*arguments)
    assert (report["interpolation"], report["crop_ratio"], report["results"][0]["resolution"]) == ("bicubic", 0.95, 160)
    assert report["results"][0]["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=2e-4)
    said = (
        "took side 160, crop torchvision, crop ratio 0.95, interpolation bicubic, mean 0.5,0.5,0.5, std 0.5,0.5,0.5 "
        "from timm's test_vit.r160_in1k"
    )
    assert capsys.readouterr().err.splitlines()[-1] == report["taken"] == said
    (tmp_path / "told.yaml").write_text("model: {arch: test_vit}\nvalidation: {crop_ratio: 1.0}\n")
    told = evaluate(*arguments, "--config-file", tmp_path / "told.yaml", "--validation.interpolation=bilinear")
    assert (told["interpolation"], told["crop_ratio"], told["results"][0]["resolution"]) == ("bilinear", 1.0, 160)
    assert told["taken"] == said.replace("crop ratio 0.95, interpolation bicubic, ", "")


def test_a_checkpoint_of_ours_keeps_its_own_preprocessing(checkpoint: Path, evaluate: Callable[..., dict]) -> None:
    report = evaluate("--checkpoint", checkpoint)
    assert (report["taken"], report["crop_ratio"]) == (None, 1.0)
