"""What published weights state of their images, against the libraries' own transforms."""

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize

from ffcv_train.config.read import load_config, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.models import preset as presets
from ffcv_train.models.opening import open_checkpoint
from ffcv_train.models.preset import Preset, of_timm, preset_of
from ffcv_train.system.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def weights(folder: Path, name: str = "weights.pth", **entries: Any) -> str:
    torch.save({"fc.weight": torch.zeros(2), **entries}, folder / name)
    return str(folder / name)


def stated(arch: str, path: str) -> Preset:
    found = preset_of(open_checkpoint(path, arch), arch)
    assert found is not None
    return found


TIMMS = [
    "resnet50.a1_in1k",  # another side and crop in the test than in training
    "resnet50.tv_in1k",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "convnext_tiny.fb_in1k",
    "inception_v3.tv_in1k",
]


@pytest.mark.parametrize("name", TIMMS)
def test_timms_presets_are_its_own_transforms(name: str, tmp_path: Path) -> None:
    options = stated(f"timm/{name}", weights(tmp_path)).options
    cfg = timm.get_pretrained_cfg(name).to_dict()
    steps = create_transform(**resolve_data_config({}, pretrained_cfg=cfg, use_test_size=True)).transforms
    (resize,), (crop,), (normalise,) = (
        [step for step in steps if isinstance(step, kind)] for kind in (Resize, CenterCrop, Normalize)
    )
    (side,) = options["validation.resolution"]
    assert crop.size == (side, side)
    assert int(side / options["validation.crop_ratio"]) == resize.size
    assert resize.interpolation == InterpolationMode(options["validation.interpolation"])
    assert normalise.mean.tolist() == pytest.approx(options["data.mean"])
    assert normalise.std.tolist() == pytest.approx(options["data.std"])
    assert options["resolution.min_res"] == options["resolution.max_res"] == cfg["input_size"][-1]


def test_a_crop_that_is_not_the_centre_is_said() -> None:
    squashed = next(
        cfg
        for cfg in (timm.get_pretrained_cfg(name) for name in timm.list_pretrained("*convnext*"))
        if cfg.crop_mode == "squash"
    )
    preset = of_timm(squashed.to_dict())
    assert "; its crop mode squash is not one of ours" in preset.says(preset.options)


def test_torchvisions_presets_are_its_own_transforms(tmp_path: Path) -> None:
    count = 0
    for arch in torchvision.models.list_models(module=torchvision.models):
        for published in torchvision.models.get_model_weights(arch):
            options = stated(arch, weights(tmp_path, published.url.rpartition("/")[2])).options
            own = published.transforms()
            (side,) = options["validation.resolution"]
            assert [side] == own.crop_size
            assert [int(side / options["validation.crop_ratio"])] == own.resize_size
            assert options["validation.interpolation"] == options["data.interpolation"] == own.interpolation.value
            assert (options["data.mean"], options["data.std"]) == (tuple(own.mean), tuple(own.std))
            assert options["resolution.max_res"] == side
            count += 1
    assert count > 100


def test_weights_are_known_by_content_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    real = list(torchvision.models.ResNet50_Weights)
    urls = ("https://x/resnet50-0123abcd.pth", f"https://x/resnet50-{digest[:8]}.pth")
    fake = [
        SimpleNamespace(url=url, transforms=one.transforms, name=one.name) for url, one in zip(urls, real, strict=True)
    ]
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: fake)
    assert stated("resnet50", path).options["validation.crop_ratio"] == 224 / 232
    named = weights(tmp_path, "resnet50-0123abcd.pth")
    assert stated("resnet50", named).options["validation.crop_ratio"] == 224 / 256


def test_of_unknown_weights_only_what_all_agree_on_is_taken(tmp_path: Path) -> None:
    preset = stated("resnet50", weights(tmp_path))
    assert "validation.crop_ratio" not in preset.options
    assert preset.options["validation.resolution"] == (224,)
    said = "from torchvision's weights of resnet50, none of which this file is, and which differ in crop ratio"
    assert said in preset.says(preset.options)
    only = stated("resnet18", weights(tmp_path))
    assert only.says({"validation.crop_ratio": 0.875}) == (
        "took crop ratio 0.875 from torchvision's weights of resnet18, none of which this file is"
    )


def test_a_default_of_several_is_called_so(tmp_path: Path) -> None:
    path = weights(tmp_path)
    said = stated("timm/resnet50", path).says({"validation.crop_ratio": 0.95})
    assert said.endswith("; the default of resnet50; another's are told by --model.arch=timm/resnet50.TAG")
    for named in ("timm/resnet50.tv_in1k", "tf_efficientnet_lite0"):
        assert "default" not in stated(named, path).says({"validation.crop_ratio": 0.95})


def test_a_checkpoint_of_ours_states_its_own(tmp_path: Path) -> None:
    config = load_config(
        RunConfig, ["--validation.crop=ffcv", "--validation.resolution=256,288", "--resolution.max_res=192"]
    )
    normalisation = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    path = weights(tmp_path, normalisation=normalisation, config=to_dict(config))
    for arch in ("cifar_resnet20", "tf_efficientnet_lite0", "resnet50"):
        options = stated(arch, path).options
        assert (options["validation.crop"], options["validation.resolution"]) == ("ffcv", (256, 288))
        assert options["resolution.min_res"] == options["resolution.max_res"] == 192
        assert (options["data.mean"], options["data.std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_who_states_nothing_is_not_asked(tmp_path: Path) -> None:
    assert preset_of(open_checkpoint(weights(tmp_path)), "cifar_resnet20") is None
    (tmp_path / "broken.pt").write_bytes(b"broken")
    with pytest.raises(UserError, match="is not a checkpoint"):
        open_checkpoint(tmp_path / "broken.pt", "resnet50")


def test_what_is_told_is_left_out_with_its_partner() -> None:
    options = {"data.mean": (0.5,) * 3, "data.std": (0.5,) * 3, "resolution.min_res": 224, "resolution.max_res": 224}
    preset = Preset("x", options)
    assert preset.untold({"data.mean", "resolution.max_res", "training.epochs"}) == {}
    assert preset.untold({"resolution.min_res"}).keys() == {"data.mean", "data.std"}
    assert preset.says({}) == ""


def test_every_key_is_an_option() -> None:
    for key in presets.TRAINING_KEYS:
        section, name = key.split(".")
        assert name in {field.name for field in dataclasses.fields(getattr(RunConfig(), section))}
