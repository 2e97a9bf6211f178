"""Grad-CAM against a computation by hand, the layers it takes, and viz/gradcam.py end to end."""

import json
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from ffcv_train.analysis.figures.gradcam import overlay, percent
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.data.kernels.crops import CenterCrop, crop_parameters
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.evaluation.gradcam import gradcam
from ffcv_train.evaluation.gradcam_images import open_images
from ffcv_train.models.checkpoint import save_checkpoint
from ffcv_train.models.class_names import read_names
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.feature_map import FeatureMap, find_feature_map
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import Process
from tests.support.checkpoints import write_checkpoint
from tests.support.photographs import ROOT, crops_of_photographs

Betons = tuple[Path, Path]
MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.22)


def run_script(*arguments: object) -> None:
    """viz/gradcam.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gradcam.py", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(ROOT / "viz" / "gradcam.py"), run_name="__main__")


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that the script prints when it refuses, having exited with status 2."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_script(*arguments)
        assert exit_.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return run


def untrained(path: Path, arch: str, classes: int, names: list[str] | None, *options: str, seed: int = 0) -> Path:
    """An untrained network of ours with its configuration."""
    torch.manual_seed(seed)
    arguments = [
        f"--model.arch={arch}",
        "--training.device=cpu",
        "--validation.resolution=32",
        "--validation.crop_ratio=1",
        *options,
    ]
    config = load_config(RunConfig, arguments)
    model = create_model(config.model, classes)
    for parameter in model.parameters():  # no zero heads: their gradient is zero everywhere
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return write_checkpoint(path, config, model, names, classes, (MEAN, STD))


NAMES = [f"class{i}" for i in range(4)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CIFAR ResNet and a transformer of the same four classes, at different resolutions."""
    folder = tmp_path_factory.mktemp("checkpoints")
    norm = (f"--data.mean={','.join(map(str, MEAN))}", f"--data.std={','.join(map(str, STD))}")
    return (
        untrained(folder / "conv.pt", "cifar_resnet20", 4, NAMES, *norm),
        untrained(folder / "vit.pt", "test_vit", 4, NAMES, *norm, "--validation.resolution=160", seed=1),
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs in class folders and one without a class, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    crops = crops_of_photographs(3, 60, 90, seed=4)
    for name, pixels in zip(("class1/a.jpg", "class3/b.png", "c.jpg"), crops, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def by_hand(model: nn.Module, layer: nn.Module, x: Tensor, label: int, tokens: tuple[int, int] | None = None) -> Tensor:
    """relu(Σ_k mean-gradient_k A_k) of one image [1, 3, R, R], from hooks; `tokens`: (prefix, side of the grid)."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    model.eval()(x)[0, label].backward()
    handle.remove()
    features, gradients = kept[0].detach()[0], kept[0].grad[0]
    if tokens is not None:
        prefix, side = tokens
        features, gradients = (t[prefix:].T.reshape(-1, side, side) for t in (features, gradients))
    weights = gradients.sum(dim=(1, 2)) / gradients[0].numel()
    result = torch.zeros(features.shape[1:])
    for k in range(len(features)):
        result += weights[k] * features[k]
    return result.clamp_min(0)


@pytest.mark.parametrize(
    ("arch", "side", "layer", "tokens"),
    [
        ("cifar_resnet20", 32, "layer3", None),
        ("densenet121", 64, "features", None),  # an operation in place follows
        ("test_vit", 160, "blocks.5.norm1", (1, 10)),
    ],
)
def test_the_map_is_the_formula_s(arch: str, side: int, layer: str, tokens: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    model = create_model(ModelConfig(arch=arch), 4)
    found = find_feature_map(model, side)
    assert found is not None
    assert found.name == layer
    pixels = torch.from_numpy(
        np.stack([Cutter(crop_parameters(CenterCrop(1.0)))(p, side) for p in crops_of_photographs(2, 80, 90)])
    )
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    normalise = Normaliser(MEAN, STD)
    network = Network(model, 4, normalise, None)
    module = model.get_submodule(layer)
    if arch == "densenet121":  # what follows changes the features in place: by hand, they are taken before a copy
        model.features = nn.Sequential(module, _Copy())
    expected = torch.stack(
        [
            torch.stack([by_hand(model, module, normalise(pixels[i : i + 1]), label, tokens) for i in range(2)])
            for label in range(4)
        ]
    )
    if arch == "densenet121":
        model.features = module
    assert float(expected.max()) > 0
    for label in range(4):
        logits, maps, explained = gradcam(network, found, pixels, [2, None], label)
        assert explained == [label, label]
        large = nn.functional.interpolate(expected[label][:, None], (side, side), mode="bilinear")[:, 0]
        torch.testing.assert_close(maps, large, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert not any(m._forward_hooks for m in model.modules())
    assert gradcam(network, found, pixels, [2, None], "true")[2] == [2, int(logits[1].argmax())]
    assert gradcam(network, found, pixels, [2, None], "predicted")[2] == logits.argmax(dim=1).tolist()


class _Copy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.parametrize(
    ("arch", "side", "expected"),
    [
        ("resnet18", 224, ("layer4", "nchw", (7, 7), 0)),
        ("timm/resnet18", 224, ("layer4", "nchw", (7, 7), 0)),
        ("timm/convnext_atto", 224, ("norm_pre", "nchw", (7, 7), 0)),
        ("tf_efficientnet_lite0", 224, ("bn2", "nchw", (7, 7), 0)),
        ("vgg11", 64, ("features", "nchw", (2, 2), 0)),  # not the pooling to 7 × 7 that follows
        ("swin_t", 64, ("permute", "nchw", (2, 2), 0)),
        ("vit_tiny_patch16_224", 224, ("blocks.11.norm1", "tokens", (14, 14), 1)),
        ("deit_tiny_distilled_patch16_224", 224, ("blocks.11.norm1", "tokens", (14, 14), 2)),
        ("cifar_deit_tiny", 32, ("blocks.11.norm1", "tokens", (8, 8), 1)),
        ("timm/test_vit3", 160, ("norm", "tokens", (10, 10), 1)),  # reads all of its tokens
    ],
)
def test_the_layer_is_found(arch: str, side: int, expected: tuple) -> None:
    model = create_model(ModelConfig(arch=arch), 5).train()
    found = find_feature_map(model, side)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert found is not None
    assert (found.name, found.layout, found.grid, found.prefix) == expected


def test_attention_is_no_feature_map() -> None:
    model = create_model(ModelConfig(arch="test_vit"), 5)
    for block in model.blocks:
        block.attn.fused_attn = False  # its matrices, tokens × tokens, now pass through a module
    found = find_feature_map(model, 160)
    assert found is not None
    assert found.name == "blocks.5.norm1"


def test_layouts_go_there_and_back() -> None:
    output = torch.randn(2, 5, 5, 3)
    nhwc = FeatureMap("", nn.Identity(), "nhwc", (5, 5))
    assert torch.equal(nhwc.to_map(output)[1, 2], output[1, :, :, 2])
    assert torch.equal(nhwc.from_map(nhwc.to_map(output), output), output)
    output = torch.randn(2, 2 + 6, 3)
    tokens = FeatureMap("", nn.Identity(), "tokens", (2, 3), 2)
    assert torch.equal(tokens.to_map(output)[0, 1], output[0, 2:, 1].reshape(2, 3))
    assert torch.equal(tokens.from_map(tokens.to_map(output), output), output)


def test_folder_end_to_end(
    checkpoints: tuple[Path, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "new" / "g.png"
    run_script("--checkpoint", *checkpoints, "--images", photographs, "--output", figure, "--labels", "Conv", "ViT")
    pixels = image.imread(figure)[..., :3]
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 0.2).mean() > 0.1  # colours, not blank
    assert "</svg>" in figure.with_suffix(".svg").read_text()
    rows = json.loads(figure.with_suffix(".json").read_text())["rows"]
    assert [(row["label"], row["layer"], row["grid"]) for row in rows] == [
        ("Conv", "layer3", [8, 8]),
        ("ViT", "blocks.5.norm1", [10, 10]),
    ]
    assert "ViT: maps of blocks.5.norm1, 10 × 10" in capsys.readouterr().out
    files = [photographs / name for name in ("c.jpg", "class1/a.jpg", "class3/b.png")]
    for row, path, side in zip(rows, checkpoints, (32, 160), strict=True):
        # The network on what torchvision's way of cropping gives, by hand.
        state = torch.load(path, weights_only=True)
        model = create_model(ModelConfig(arch=state["arch"]), 4).eval()
        model.load_state_dict(state["model"])
        for file, true, found in zip(files, ("", "class1", "class3"), row["images"], strict=True):
            photo = Image.open(file).convert("RGB")
            crop = transforms.CenterCrop(side)(transforms.Resize(side)(photo))
            x = (torch.from_numpy(np.array(crop)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
            with torch.no_grad():
                probabilities = model(x.permute(2, 0, 1)[None]).softmax(dim=1)[0]
            best = int(probabilities.argmax())
            assert found["predicted"] == f"class{best}"
            assert found["probability"] == pytest.approx(float(probabilities[best]), rel=2e-3)
            assert found["explained"] == (true or found["predicted"])
            assert (found["true"], found["correct"]) == (true, found["predicted"] == true if true else None)


def test_beton_end_to_end(checkpoints: tuple[Path, Path], small_betons: Betons, tmp_path: Path) -> None:
    given = ("--checkpoint", checkpoints[0], "--images", small_betons[1], "--output", tmp_path / "g.png")
    run_script(*given, "--indices", 7, 2, 13, "--class", "predicted")
    (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert row["label"] == "conv"
    assert [cell["true"] for cell in row["images"]] == ["class3", "class2", "class1"]  # label = index mod 4
    assert all(cell["explained"] == cell["predicted"] for cell in row["images"])
    run_script(*given, "--count", 4, "--seed", 3, "--class", "class2")
    first = json.loads((tmp_path / "g.json").read_text())
    assert [len(row["images"]) for row in first["rows"]] == [4]
    assert {cell["explained"] for cell in first["rows"][0]["images"]} == {"class2"}
    run_script(*given, "--count", 4, "--seed", 3, "--class", "2")
    assert json.loads((tmp_path / "g.json").read_text()) == first
    images = open_images(small_betons[1], count=4, seed=4)
    assert images.labels(None) != open_images(small_betons[1], count=4, seed=3).labels(None)


def test_foreign_weights_and_names(tmp_path: Path, photographs: Path, error_of: Callable[..., str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(create_model(ModelConfig(arch="cifar_resnet20"), 1000).state_dict(), weights)
    (tmp_path / "images" / "n02123045").mkdir(parents=True)
    (tmp_path / "images" / "n02123045" / "a.jpg").write_bytes((photographs / "c.jpg").read_bytes())
    given = ("--checkpoint", weights, "--images", tmp_path / "images", "--output", tmp_path / "g.png")
    assert "--model.arch" in error_of(*given)
    given = (*given, "--model.arch=cifar_resnet20", "--validation.resolution=32", "--training.device=cpu")
    run_script(*given, "--names", "imagenet")
    (cell,) = json.loads((tmp_path / "g.json").read_text())["rows"][0]["images"]
    assert (cell["true"], cell["explained"]) == ("tabby", "tabby")
    run_script(*given)  # a thousand classes, and a folder that is one of ImageNet's
    (cell,) = json.loads((tmp_path / "g.json").read_text())["rows"][0]["images"]
    assert (cell["true"], cell["explained"]) == ("tabby", "tabby")
    (tmp_path / "images" / "n02123045").rename(tmp_path / "images" / "cats")
    run_script(*given)  # no names: the folder's name is shown, the prediction explained
    (cell,) = json.loads((tmp_path / "g.json").read_text())["rows"][0]["images"]
    assert (cell["true"], cell["correct"]) == ("cats", None)
    assert cell["explained"] == cell["predicted"] != "tabby"
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert "has 2 names" in error_of(*given, "--names", tmp_path / "names.txt")
    assert "cannot be read" in error_of(*given, "--names", tmp_path / "none.txt")
    names = read_names(str(tmp_path / "names.txt"))
    assert names is not None
    assert names.find("dog") == 1
    # Beside a checkpoint of ours, of another architecture, --model.arch is the foreign one's.
    ours = untrained(tmp_path / "ours.pt", "cifar_resnet32", 1000, None)
    for arch in (("--model.arch=cifar_resnet20",), ("--model.arch", "cifar_resnet20")):
        rest = ("--images", tmp_path / "images", "--output", tmp_path / "g.png", *arch, "--validation.resolution=32")
        run_script("--checkpoint", weights, ours, *rest)
        rows = json.loads((tmp_path / "g.json").read_text())["rows"]
        assert [row["label"] for row in rows] == ["weights", "ours"]
    assert "is a checkpoint of cifar_resnet32" in error_of("--checkpoint", ours, *rest)


def test_archives(
    checkpoints: tuple[Path, Path], photographs: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    files = [photographs / "class1/a.jpg", photographs / "class3/b.png"]
    archive, lines = tmp_path / "val.zip", ["a.jpg\t1", "b.png\t3"]
    with zipfile.ZipFile(archive, "w") as content:
        for file in files:
            content.write(file, file.name)
    (tmp_path / "val_map.txt").write_text("\n".join(lines))
    found = open_images(archive, indices=[1, 0])
    assert found.labels(None) == [3, 1]
    config = load_config(RunConfig, ["--training.device=cpu", "--validation.resolution=48"])
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in reversed(files)]
    steps = transforms.Compose([transforms.Resize(int(48 / 0.875)), transforms.CenterCrop(48)])
    expected = [np.asarray(steps(Image.fromarray(image)), float) for image in pixels]
    differences = np.abs(found.read(config, process).permute(0, 2, 3, 1).numpy() - np.stack(expected))
    assert differences.mean() <= 0.5 and differences.mean(axis=(1, 2, 3)).max() <= 1.5

    run_script("--checkpoint", *checkpoints, "--images", archive, "--output", tmp_path / "g.png")
    rows = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [cell["true"] for row in rows for cell in row["images"]] == ["class1", "class3"] * 2
    given = ("--checkpoint", checkpoints[0], "--images", archive, "--output", tmp_path / "g.png")
    assert "has samples 0 to 1" in error_of(*given, "--indices", 2)
    (tmp_path / "val_map.txt").write_text("a.jpg\t1\nb.png\t4")
    assert "label" in error_of(*given)
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.jpg", files[0].read_bytes()[:300])
        content.write(files[1], "b.png")
    (tmp_path / "val_map.txt").write_text("\n".join(lines))
    line = error_of(*given)
    assert "a.jpg (line 1 of " in line
    assert "cannot be read" in line


def test_refusals(
    checkpoints: tuple[Path, Path],
    photographs: Path,
    small_betons: Betons,
    tmp_path: Path,
    error_of: Callable[..., str],
) -> None:
    conv, output = ("--checkpoint", checkpoints[0]), ("--output", tmp_path / "g.png")
    both = (*conv, "--images", photographs, *output)
    assert "--images PATH" in error_of(*conv, *output)
    assert "--output FILE.png" in error_of(*conv, "--images", photographs)
    assert "must end in .png" in error_of(*conv, "--images", photographs, "--output", tmp_path / "g.pdf")
    assert "no checkpoint" in error_of("--images", photographs, *output)
    assert "unknown key in the command line: '--clas'" in error_of(*both, "--clas", "true")
    assert "--class dog is no class" in error_of(*both, "--class", "dog")
    assert "--class 4 is no class" in error_of(*both, "--class", "4")
    assert "2 --labels do not name 1" in error_of(*both, "--labels", "a", "b")
    assert "--count must be from 1 to 12" in error_of(*both, "--count", 13)
    assert "samples of a .beton file or a .zip" in error_of(*both, "--indices", 0)
    assert "has samples 0 to 49" in error_of(*conv, "--images", small_betons[1], *output, "--indices", 50)
    assert "neither a folder nor" in error_of(*conv, "--images", photographs / "c.jpg", *output)
    assert "would replace an image" in error_of(
        *conv, "--images", photographs, "--output", photographs / "class3/b.png"
    )
    # Classes that differ.
    names = untrained(tmp_path / "names.pt", "cifar_resnet20", 4, list("abcd"))
    more = untrained(tmp_path / "more.pt", "cifar_resnet20", 5, None)
    pair = ("--images", photographs, *output)
    assert "calls label 0 'class0', " in error_of("--checkpoint", checkpoints[0], names, *pair)
    assert "has 4 classes, " in error_of("--checkpoint", checkpoints[0], more, *pair)
    assert "has the class 'class0' (and " in error_of("--checkpoint", names, "--images", small_betons[1], *output)
    assert "named after no class" in error_of("--checkpoint", names, *pair)
    # Images that are none, too many or broken.
    (tmp_path / "empty").mkdir()
    assert "holds no image files" in error_of(*conv, "--images", tmp_path / "empty", *output)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.jpg").write_bytes((photographs / "c.jpg").read_bytes()[:700])
    assert "x.jpg cannot be read" in error_of(*conv, "--images", broken, *output)
    assert "do not say their class" in error_of(*conv, "--images", broken, *output, "--class", "true")
    for i in range(13):
        (tmp_path / "empty" / f"{i}.jpg").write_bytes((photographs / "c.jpg").read_bytes())
    assert "13 images" in error_of(*conv, "--images", tmp_path / "empty", *output)
    # A network whose spatial features reach no logit, and one without any.
    assert not (tmp_path / "g.png").exists()
    state = torch.load(checkpoints[0], weights_only=True)
    state["model"]["fc.weight"].zero_()
    save_checkpoint({**state}, tmp_path / "blind.pt")
    line = error_of("--checkpoint", tmp_path / "blind.pt", *pair)
    assert "no feature map of cifar_resnet20 has more than one position at 32 pixels and reaches the logits" in line
    assert find_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), 32) is None


def test_the_overlay_marks_the_maximum() -> None:
    pixels = np.full((8, 8, 3), 120, np.uint8)
    heat = np.zeros((8, 8))
    heat[2, 5] = 3.0
    colors = overlay(pixels, heat).astype(int)
    brightness = colors.sum(axis=2)
    assert np.unravel_index(brightness.argmax(), (8, 8)) == (2, 5)
    assert len(np.unique(brightness)) == 2
    assert (overlay(pixels, 7 * heat) == colors).all()
    assert overlay(pixels, np.zeros((8, 8))).max() < 120
    assert [percent(p) for p in (0.0, 0.123456, 0.9996, 1.0)] == ["0.0%", "12.3%", ">99.9%", "100.0%"]
