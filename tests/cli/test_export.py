"""export: every format, read by its own library without our code, gives our logits of real images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ffcv_train import Classifier, load_network
from ffcv_train.cli import evaluate, export, predict
from ffcv_train.cli.main import run_main
from ffcv_train.cli.presets import load_run_config
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.models.factory import create_model
from ffcv_train.models.weights import load_weights
from ffcv_train.publish import export as exporting
from ffcv_train.publish.description import describe
from tests.support.checkpoints import write_checkpoint
from tests.support.photographs import crops_of_photographs
from tests.support.runs import Betons

NAMES = [f"class{i}" for i in range(4)]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Make = Callable[..., Path]
ON_THE_CPU = ("--training.device=cpu", "--training.amp=off", "--data.num_workers=1")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A checkpoint of an architecture, with averaged weights other than the plain ones."""

    def checkpoint(arch: str, side: int, *more: str) -> Path:
        words = [f"--model.arch={arch}", f"--validation.resolution={side}", "--validation.crop_ratio=0.875", *more]
        config = load_config(RunConfig, [*words, "--training.ema_decay=0.9"])
        models = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = create_model(config.model, 4)
            with torch.no_grad():
                for _ in range(3):
                    model.train()(torch.randn(8, 3, 64, 64) if "vit" not in arch else torch.randn(2, 3, side, side))
            models.append(model)
        path = tmp_path_factory.mktemp("run") / "final.pt"
        plain, averaged = models
        return write_checkpoint(path, config, plain, NAMES, 4, (MEAN, STD), ema=averaged.state_dict())

    return checkpoint


@pytest.fixture(scope="module")
def resnet(make: Make) -> Path:
    return make("resnet18", 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve photographs, without loss, of the side that validation's resize makes of 64 px: no resampling."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(crops_of_photographs(12, 73, 73, seed=3)):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


def run(checkpoint: Path, form: str, path: Path, files: list[Path], *more: str) -> None:
    words = [f"--checkpoint={checkpoint}", f"--format={form}", f"--output={path}", f"--images={files[0].parent}"]
    export.main([*words, *more])


def normalised(files: list[Path], mean: Any = MEAN, std: Any = STD) -> Tensor:
    """float32 [N, 3, 64, 64], by none of our code."""
    pixels = np.stack([np.asarray(Image.open(file).crop((4, 4, 68, 68))) for file in files])
    return ((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)


def ours(checkpoint: Path, files: list[Path], weights: str = "ema") -> Tensor:
    return load_network(checkpoint, device="cpu", amp="off", weights=weights).predict(files)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_onnx(resnet: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By ONNX Runtime, in batches of any size; all that its user must know stands in the file."""
    path = tmp_path / "network.onnx"
    run(resnet, "onnx", path, files)
    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    mean, std = json.loads(about["mean"]), json.loads(about["std"])
    wanted = ours(resnet, files)
    for count in (1, 5, 12):
        images = normalised(files[:count], mean, std).numpy()
        close(torch.from_numpy(session.run(["logits"], {"images": images})[0]), wanted[:count])
    assert json.loads(about["class_names"]) == NAMES
    assert (about["arch"], about["weights"], about["side"], about["interpolation"]) == (
        "resnet18",
        "ema",
        "64",
        "bilinear",
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    printed = capsys.readouterr().out
    assert f"compared on 12 images of {files[0].parent}: logits differ by at most" in printed
    assert "12 of 12 have the same class" in printed


def test_torch(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    run(resnet, "torch", path, files, "--weights=model")
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 7):
        close(program(normalised(files[:count])), ours(resnet, files[:count], "model"))
    about = json.loads(extra["metadata.json"])
    assert (about["class_names"], about["weights"], about["crop_ratio"]) == (NAMES, "model", 0.875)


def test_timm(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    """The folder alone says the network, its transform and its classes; accuracy by timm's own code is ours."""
    path = tmp_path / "folder"
    path.mkdir()
    run(resnet, "timm", path, files)
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(file)) for file in files]))
    close(logits, ours(resnet, files))
    assert json.loads((path / "config.json").read_text())["label_names"] == NAMES
    assert sorted(entry.name for entry in path.iterdir()) == ["config.json", "model.safetensors"]


def test_torchvision(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    run(resnet, "torchvision", path, files)
    model = torchvision.models.resnet18(num_classes=4)
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        close(model.eval()(normalised(files)), ours(resnet, files))
    about = json.loads(Path(f"{path}.json").read_text())
    assert (about["mean"], about["class_names"]) == (list(MEAN), NAMES)


def test_safetensors(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    run(resnet, "safetensors", path, files)
    model = torchvision.models.resnet18(num_classes=4)
    model.load_state_dict(safetensors.torch.load_file(path))
    with torch.no_grad():
        close(model.eval()(normalised(files)), ours(resnet, files))
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == NAMES


ODD = ("--validation.crop=ffcv", "--validation.crop_ratio=0.8", "--validation.interpolation=bicubic")


@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "n.safetensors"), ("torchvision", "n.pth"), ("timm", "folder")]
)
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_our_own_commands_take_an_export_as_the_checkpoint_that_it_was(
    make: Make, files: list[Path], tmp_path: Path, form: str, name: str, weights: str
) -> None:
    """Its preprocessing and classes, not those of the library whose architecture it has; nothing has to be told."""
    checkpoint, path = make("resnet18", 64, *ODD), tmp_path / name
    run(checkpoint, form, path, files, f"--weights={weights}")
    path = path / "model.safetensors" if form == "timm" else path
    again = load_network(path, device="cpu", amp="off")
    close(again.predict(files), ours(checkpoint, files, weights))
    assert (again.class_names, again.weights) == (tuple(NAMES), weights)
    predict.main([f"--checkpoint={path}", str(files[0]), f"--output={tmp_path / 'p.csv'}", "--top=1", *ON_THE_CPU])
    assert NAMES[int(ours(checkpoint, files[:1], weights).argmax())] in (tmp_path / "p.csv").read_text()
    options, taken, _ = load_run_config([f"--model.weights={path}", "--model.arch=resnet18"])
    assert (options.validation.crop, options.validation.crop_ratio, options.data.mean) == ("ffcv", 0.8, MEAN)
    assert taken.endswith(f"mean 0.4,0.5,0.6, std 0.2,0.25,0.3 from {path}")
    model = create_model("resnet18", 4)
    assert load_weights(model, path).class_names == tuple(NAMES)
    other = "model" if weights == "ema" else "ema"
    with pytest.raises(exporting.UserError, match=f"use --weights {weights}"):
        load_network(path, device="cpu", weights=other)


def test_blurpool_of_an_export_is_known(make: Make, files: list[Path], tmp_path: Path) -> None:
    checkpoint, path = make("cifar_resnet20", 64, "--model.use_blurpool=1"), tmp_path / "n.safetensors"
    run(checkpoint, "safetensors", path, files)
    close(load_network(path, device="cpu", amp="off").predict(files), ours(checkpoint, files))
    with pytest.raises(exporting.UserError, match=r"trained with BlurPool.*model\.use_blurpool=1"):
        load_weights(create_model("cifar_resnet20", 4), path)


def test_an_export_is_not_rewritten(resnet: Path, small_betons: Betons, files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    run(resnet, "safetensors", path, files)
    words = [f"--checkpoint={path}", f"--data.val_dataset={small_betons[1]}", *ON_THE_CPU]
    with pytest.raises(exporting.UserError, match="is not a checkpoint of a run here, and others are not rewritten"):
        evaluate.main([*words, "--suite=calibration", "--keep-temperature"])


@pytest.mark.parametrize("change", [{"num_classes": "5"}, {"arch": None}, {"producer": "another 1.0"}, {"side": "["}])
def test_what_others_wrote_in_its_place_is_not_believed(
    resnet: Path, files: list[Path], tmp_path: Path, change: dict[str, str | None]
) -> None:
    path = tmp_path / "n.safetensors"
    run(resnet, "safetensors", path, files)
    with safetensors.safe_open(path, "pt") as file:
        stated = file.metadata() | change
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {key: text for key, text in stated.items() if text is not None})
    with pytest.raises(exporting.UserError, match="is not a checkpoint of this trainer"):
        load_network(path)


def test_blurpool_is_in_the_graph(make: Make, files: list[Path], tmp_path: Path) -> None:
    checkpoint = make("cifar_resnet20", 64, "--model.use_blurpool=1")
    run(checkpoint, "onnx", tmp_path / "n.onnx", files)
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    close(torch.from_numpy(session.run(["logits"], {"images": normalised(files).numpy()})[0]), ours(checkpoint, files))
    for form, name in (("timm", "folder"), ("torchvision", "n.pth")):
        with pytest.raises(exporting.UserError, match=f"{form} has no BlurPool"):
            run(checkpoint, form, tmp_path / name, files)


def test_a_transformer(make: Make, files: list[Path], tmp_path: Path) -> None:
    """timm's, at its side, as a folder and as a program of batches of any size."""
    checkpoint = make("test_vit", 160)
    run(checkpoint, "timm", tmp_path / "folder", files)
    run(checkpoint, "torch", tmp_path / "n.pt2", files)
    timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    with pytest.raises(exporting.UserError, match="torchvision has no network test_vit, which is timm's"):
        run(checkpoint, "torchvision", tmp_path / "n.pth", files)


def test_real_images_are_found(
    small_run: Path, resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's validation set where it is there, else photographs that come with a library."""
    for checkpoint, expected in ((small_run / "final.pt", "16 images of"), (resnet, "2 images of scikit-learn")):
        path = tmp_path / f"{checkpoint.parent.name}.safetensors"
        export.main([f"--checkpoint={checkpoint}", "--format=safetensors", f"--output={path}"])
        assert f"compared on {expected}" in capsys.readouterr().out


def classifier_of(model: nn.Module, checkpoint: Path) -> Classifier:
    """Another model in the place of a checkpoint's."""
    loaded = load_network(checkpoint, device="cpu", amp="off")
    object.__setattr__(loaded.network, "model", model)
    return loaded


class Reduced(nn.Module):
    """Has an operator that ONNX lacks."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.eigvals(images[:, :, :4, :4].mean(1)).real


def test_an_operator_that_is_missing(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    loaded = classifier_of(Reduced(), resnet)
    images, _ = export.real_images(loaded.config, str(files[0].parent))
    with pytest.raises(exporting.UserError, match=r"cannot be written as ONNX: .*eig.*; choose another --format"):
        exporting.export(loaded, "onnx", tmp_path / "n.onnx", describe(loaded), images)
    assert not list(tmp_path.iterdir())


class Undecided(nn.Module):
    """What an exporter records of it is not what it does: the branch depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.mean((2, 3)) * (1.0 if self.calls == 1 else 1.001)


def test_other_logits_leave_nothing(resnet: Path, files: list[Path], tmp_path: Path) -> None:
    loaded = classifier_of(Undecided(), resnet)
    images, _ = export.real_images(loaded.config, str(files[0].parent))
    with pytest.raises(exporting.UserError, match="logits differ from ours by up to"):
        exporting.export(loaded, "torch", tmp_path / "n.pt2", describe(loaded), images)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for words, expected in [
        (["--output=n.onnx"], "no format to write"),
        (["--format=onnx"], "nowhere to write to"),
        (["--format=onnx", "--output=n.pt"], "must end in .onnx"),
        (["--format=torchvision", "--output=n.onnx"], "must end in .pth or .pt"),
        (["--format=timm", f"--output={tmp_path / 'full'}"], "writes a folder, name a new one"),
        (["--format=onnx", "--output=n.onnx", "--images=none"], "none does not exist"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda words=words: export.main([f"--checkpoint={resnet}", *words]))  # type: ignore[misc]
        assert exit_.value.code == 2
        assert expected in capsys.readouterr().err


def test_onnx_without_its_packages(
    resnet: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(exporting.UserError, match="needs onnx, onnxscript, onnxruntime; pip install"):
        run(resnet, "onnx", tmp_path / "n.onnx", files)
