"""The scripts in viz/ end to end, from a checkpoint trained here to figures and tables, and what they refuse."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.metrics.features import feature_metrics
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.last_layer import find_last_layer
from ffcv_train.system.distributed import Process
from ffcv_train.training.trainer import Trainer
from tests.support.photographs import ROOT, Samples, crops_of_photographs, write_stock_beton

Betons = tuple[Path, Path]
Script = Callable[..., str]


def run_script(name: str, *arguments: object) -> None:
    """A script of viz/ in this process, with its arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(ROOT / "viz" / name), run_name="__main__")


@pytest.fixture(scope="module")
def checkpoint(small_betons: Betons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network after two epochs."""
    arguments = [
        "--model.arch=cifar_resnet20",
        f"--data.train_dataset={small_betons[0]}",
        f"--data.val_dataset={small_betons[1]}",
        "--data.num_workers=1",
        "--lr.lr=0.05",
        "--resolution.min_res=32",
        "--resolution.max_res=32",
        "--training.epochs=2",
        "--training.batch_size=24",
        "--training.device=cpu",
        "--training.amp=off",
        "--validation.resolution=32",
        "--validation.crop_ratio=1",
        "--validation.batch_size=16",
        "--validation.every=2",
        f"--logging.folder={tmp_path_factory.mktemp('runs')}",
        "--logging.tensorboard=0",
    ]
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    return Trainer(load_config(RunConfig, arguments), process).fit() / "final.pt"


@pytest.fixture(scope="module")
def logits(checkpoint: Path, small_betons: Betons, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What viz/logits.py wrote of the validation and of the training set, with features."""
    folder = tmp_path_factory.mktemp("logits")
    run_script("logits.py", "--checkpoint", checkpoint, "--output", folder / "val.pt", "--features")
    train = f"--data.val_dataset={small_betons[0]}"
    run_script("logits.py", "--checkpoint", checkpoint, "--output", folder / "train.pt", "--features", train)
    return folder / "val.pt", folder / "train.pt"


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Script:
    """The one line that a script prints when it refuses, having exited with status 2."""

    def run(name: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_script(name, *arguments)
        lines = capsys.readouterr().err.splitlines()
        assert exit_.value.code == 2
        assert lines[-1].startswith("error: ") or "error: unrecognized arguments" in lines[-1]
        return lines[-1]

    return run


def check_figure(folder: Path, name: str) -> None:
    pixels = image.imread(folder / f"{name}.png")[..., :3]
    assert (pixels.min(axis=2) < 0.9).mean() > 0.01  # not blank
    assert "</svg>" in (folder / f"{name}.svg").read_text()


def val_images() -> tuple[np.ndarray, np.ndarray]:
    """The validation set's pixels and labels, as conftest makes them."""
    images, labels = crops_of_photographs(50, 32, 32, seed=2), np.arange(50) % 4
    for pixels, label in zip(images, labels, strict=True):
        pixels[:, :, label % 3] = pixels[:, :, label % 3] // 2 + (64 if label == 3 else 127)
    return np.stack(images), labels


def test_logits_and_features_are_the_network_s(checkpoint: Path, logits: tuple[Path, Path]) -> None:
    found = read_logits(logits[0])
    state = torch.load(checkpoint, weights_only=True)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4).eval()
    model.load_state_dict(state["model"])
    images, labels = val_images()
    mean, std = (torch.tensor(state["normalisation"][key]) for key in ("mean", "std"))
    batch = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(batch)
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.labels, torch.from_numpy(labels))
    assert torch.equal(found.indices, torch.arange(50))
    assert torch.equal(found.weight, state["model"]["fc.weight"])
    # The features are what the stored layer makes these logits of.
    features = found.need_features()
    # Each side is a sum of 65 float32 products, in an order that depends on the processor.
    bound = 2 * 66 * torch.finfo(torch.float32).eps * (features.abs() @ found.weight.abs().T + found.bias.abs())
    assert ((features @ found.weight.T + found.bias - found.logits).abs() <= bound).all()
    assert found.features.shape == (50, 64)
    assert found.class_names == ("class0", "class1", "class2", "class3")
    assert found.about["checkpoint"] == str(checkpoint)
    assert found.about["amp"] == "off"
    assert (found.about["resolution"], found.about["epoch"], found.about["loss"]) == (32, 2, "maxsup")
    assert (len(read_logits(logits[1])), found.data_set) == (96, "val.beton")


def test_two_processes_write_the_same_file(checkpoint: Path, logits: tuple[Path, Path], tmp_path: Path) -> None:
    script = str(ROOT / "viz" / "logits.py")
    command = [sys.executable, script, f"--checkpoint={checkpoint}", f"--output={tmp_path / 'L.pt'}", "--features"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # As torchrun starts them.
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert ["logits of" in text for text in printed] == [True, False]
    found, expected = read_logits(tmp_path / "L.pt"), read_logits(logits[0])
    for name in ("logits", "features"):
        # The two processes' batches have other sizes, for which a processor may choose other kernels.
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.indices, expected.indices)


def test_logits_refusals(checkpoint: Path, error_of: Script, tmp_path: Path, small_betons: Betons) -> None:
    assert "--output FILE" in error_of("logits.py", "--checkpoint", checkpoint)
    assert "would replace" in error_of("logits.py", "--checkpoint", checkpoint, "--output", checkpoint)
    assert "would replace" in error_of("logits.py", "--checkpoint", checkpoint, "--output", small_betons[1])
    given = ("--checkpoint", checkpoint, "--output", tmp_path / "L.pt")
    assert "unknown key in the command line: '--featuers'" in error_of("logits.py", *given, "--featuers")
    weights = tmp_path / "squeezenet.pt"
    torch.save(create_model(ModelConfig(arch="squeezenet1_0"), 4).state_dict(), weights)
    foreign = ("--checkpoint", weights, "--model.arch=squeezenet1_0", f"--data.val_dataset={small_betons[1]}")
    foreign = (*foreign, "--output", tmp_path / "L.pt", "--validation.resolution=32", "--validation.batch_size=16")
    line = error_of("logits.py", *foreign, "--features")
    assert "no linear layer of squeezenet1_0 gives its logits" in line
    assert not (tmp_path / "L.pt").exists()
    run_script("logits.py", *foreign)  # without features it goes
    assert read_logits(tmp_path / "L.pt").weight is None


@pytest.mark.parametrize(
    ("arch", "name", "width"),
    [
        ("cifar_resnet32", "fc", 64),
        ("resnet18", "fc", 512),
        ("mobilenet_v2", "classifier.1", 1280),
        ("timm/resnet18", "fc", 512),
        ("tf_efficientnet_lite0", "classifier", 1280),
        ("vit_tiny_patch16_224", "head", 192),
        ("squeezenet1_0", None, 0),
        ("deit_tiny_distilled_patch16_224", "head + head_dist", 384),  # the mean of two heads
        ("cifar_deit_tiny_distilled", "head + head_dist", 384),
    ],
)
def test_the_last_layer_is_found(arch: str, name: str | None, width: int) -> None:
    model = create_model(ModelConfig(arch=arch), 5).train()
    side = 224 if "patch16" in arch else 32 if "cifar_deit" in arch else 48
    layer = find_last_layer(model, side)
    assert all(module.training for module in model.modules())
    if name is None:
        assert layer is None
        return
    assert layer is not None
    assert (layer.name, tuple(layer.weight.shape)) == (name, (5, width))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with layer.capture(), torch.no_grad():
        expected = model.eval()(torch.randn(2, 3, side, side))
        assert layer.features is not None
        torch.testing.assert_close(layer.features @ layer.weight.T + layer.bias, expected)
    assert layer.features is None
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_analysis(logits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(
        "analysis.py", "--input", *logits, "--labels", "A", "B", "--threshold", 0.5, "--output", tmp_path / "new"
    )
    folder = tmp_path / "new"
    for name in ("near_zero", "density", "distributions", "reliability"):
        check_figure(folder, name)
    report = json.loads((folder / "analysis.json").read_text())
    file = read_logits(logits[0])
    first = report["inputs"][0]
    assert (first["label"], first["samples"], first["threshold"]) == ("A", 50, 0.5)
    assert first["top_1"] == pytest.approx(float((file.logits.argmax(dim=1) == file.labels).double().mean()))
    assert first["near_zero_share"] == pytest.approx(float((file.logits.abs() < 0.5).double().mean()))
    assert first["nll"] == pytest.approx(float(nn.functional.cross_entropy(file.logits, file.labels)), rel=1e-5)
    table = (folder / "analysis.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| A | 50 | 4 | {100 * first['top_1']:.2f} |" in table


def test_features(logits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("features.py", "--input", *logits, "--output", tmp_path)
    check_figure(tmp_path, "features")
    records = json.loads((tmp_path / "features.json").read_text())["inputs"]
    assert [record["label"] for record in records] == ["val", "train"]
    for path, record in zip(logits, records, strict=True):
        file = read_logits(path)
        expected = feature_metrics(file.need_features(), file.labels, 4)
        assert (record["d_within"], record["r_squared"]) == (expected.d_within, expected.r_squared)
        assert f"{expected.d_within:.4f} | {expected.d_total:.4f}" in (tmp_path / "features.md").read_text()
    assert "d_within" in capsys.readouterr().out


def test_projection(logits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("projection.py", "--input", *logits, "--samples", 10, "--output", tmp_path)
    check_figure(tmp_path, "projection")
    planes = json.loads((tmp_path / "projection.json").read_text())["planes"]
    assert [plane["reason"] for plane in planes] == ["most similar templates", "most often confused"]
    assert planes[0]["classes"] != planes[1]["classes"]
    assert {len(points) for plane in planes for clouds in plane["points"].values() for points in clouds} == {10}
    out = capsys.readouterr().out
    assert ", ".join(planes[0]["names"]) in out
    run_script("projection.py", "--input", logits[0], "--classes", "class2", "0", "class1", "--output", tmp_path / "x")
    (plane,) = json.loads((tmp_path / "x" / "projection.json").read_text())["planes"]
    assert plane["classes"] == [2, 0, 1]
    assert "samples of the smallest class: 12" in capsys.readouterr().out


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Betons:
    """Betons of other classes than the checkpoint's: three colours, easily told apart."""
    folder = tmp_path_factory.mktemp("three")
    paths = []
    for name, count, seed in (("t", 90, 5), ("v", 30, 6)):
        images = crops_of_photographs(count, 32, 32, seed)
        for i, pixels in enumerate(images):
            pixels[:, :, i % 3] = pixels[:, :, i % 3] // 4 + 190
        paths.append(
            write_stock_beton(folder / f"{name}.beton", Samples(images, [i % 3 for i in range(count)]), "raw", 3)
        )
    return paths[0], paths[1]


def test_transfer(checkpoint: Path, three_classes: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--train", three_classes[0], "--val", three_classes[1])
    run_script("transfer.py", "--checkpoint", checkpoint, *files, "--output", tmp_path)
    check_figure(tmp_path, "transfer")
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert report["accuracy"] >= 0.6  # of three classes and 30 samples: by chance once in a thousand times
    assert len(report["curve"]) == 45
    assert [candidate["strength"] for candidate in report["curve"]] == pytest.approx(np.logspace(-6, 5, 45))
    best = max(candidate["accuracy"] for candidate in report["curve"])
    assert report["strength"] in [c["strength"] for c in report["curve"] if c["accuracy"] == best]
    assert (report["train_samples"], report["val_samples"], report["features"]) == (90, 30, 64)
    assert f"{100 * report['accuracy']:.2f} |" in (tmp_path / "transfer.md").read_text()
    assert f"{report['accuracy']:.2%} on" in capsys.readouterr().out


def test_transfer_refusals(
    checkpoint: Path, three_classes: Betons, small_betons: Betons, error_of: Script, tmp_path: Path
) -> None:
    given: tuple[Any, ...] = ("transfer.py", "--checkpoint", checkpoint, "--output", tmp_path)
    assert "--val is missing" in error_of(*given, "--train", small_betons[0])
    mixed = error_of(*given, "--train", three_classes[0], "--val", small_betons[1])
    assert "class3" in mixed and "make both of the same classes" in mixed
    both = (*given, "--train", three_classes[0], "--val", three_classes[1])
    assert "must lie between 0 and 1" in error_of(*both, "--held-out", 1)
    assert "unknown key in the command line: '--ignore-class-names'" in error_of(*both, "--ignore-class-names")
    assert "folder with --output" in error_of(*both[:3], *both[5:])


def test_refusals_of_files(logits: tuple[Path, Path], error_of: Script, tmp_path: Path) -> None:
    val = read_logits(logits[0])
    bare, two, other = tmp_path / "bare.pt", tmp_path / "two.pt", tmp_path / "other.pt"
    torch.save({"logits": val.logits.clone(), "labels": val.labels.clone()}, bare)
    torch.save({"logits": val.logits[:, :2].clone(), "labels": val.labels.clamp_max(1)}, two)
    layer = {"weight": val.weight.clone(), "bias": None}
    rest = {"labels": val.labels.clone(), "features": val.need_features().clone(), "last_layer": layer}
    torch.save({"logits": val.logits.clone(), **rest, "class_names": list("abcd")}, other)
    out = ("--output", tmp_path / "out")
    assert "4 classes" in error_of("analysis.py", "--input", logits[0], two, *out)
    assert "1 --labels do not name 2 --input" in error_of("analysis.py", "--input", *logits, "--labels", "A", *out)
    assert "called 'A'" in error_of("analysis.py", "--input", *logits, "--labels", "A", "A", *out)
    assert "more than 0" in error_of("analysis.py", "--input", logits[0], "--threshold", 0, *out)
    assert "unrecognized arguments: --bins" in error_of("analysis.py", "--input", logits[0], *out, "--bins", 5)
    assert "is a file; name a folder" in error_of("analysis.py", "--input", logits[0], "--output", bare)
    assert "does not exist" in error_of("analysis.py", "--input", tmp_path / "none.pt", *out)
    assert "holds no features" in error_of("features.py", "--input", bare, *out)
    assert "holds no features" in error_of("projection.py", "--input", bare, *out)
    projection = ("projection.py", "--input", logits[0])
    assert "--classes cat is no class" in error_of(*projection, "--classes", "class0", "cat", "1", *out)
    assert "names a class twice" in error_of(*projection, "--classes", "class0", "0", "1", *out)
    assert "give files of models with the same classes" in error_of(*projection, other, *out)
    few = {**rest, "labels": val.labels.clamp_max(1), "logits": val.logits.clone()}
    torch.save(few, two)
    assert "a plane needs three classes, and 2 of 4 have samples" in error_of("projection.py", "--input", two, *out)
    line = error_of("projection.py", "--input", two, "--classes", "0", "1", "2", *out)
    assert "has no sample of class 2" in line
