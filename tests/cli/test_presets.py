"""Fine-tuning takes the preprocessing of its weights, below what is told, and keeps it when it is continued."""

import json
from pathlib import Path

import pytest
import timm
import torch

from ffcv_train.cli.presets import load_run_config
from ffcv_train.cli.train import main
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.errors import UserError
from tests.support.runs import Betons, options


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """timm's test_efficientnet_gn: bicubic, 160 pixels of 168, mean and std 0.5."""
    torch.save(timm.create_model("test_efficientnet_gn").state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_a_run_takes_what_its_weights_state_unless_told(weights: Path, tmp_path: Path) -> None:
    arguments = ["--model.arch=test_efficientnet_gn", f"--model.weights={weights}"]
    config, taken, _ = load_run_config(arguments)
    assert taken == (
        "took side 160, crop torchvision, crop ratio 0.95, interpolation bicubic, training side 160, training "
        "interpolation bicubic, mean 0.5,0.5,0.5, std 0.5,0.5,0.5 from timm's test_efficientnet_gn.r160_in1k"
    )
    assert (config.resolution.min_res, config.resolution.max_res, config.validation.resolution) == (160, 160, (160,))
    assert (config.data.interpolation, config.validation.interpolation) == ("bicubic", "bicubic")
    assert config.data.mean == timm.get_pretrained_cfg("test_efficientnet_gn").mean
    (tmp_path / "told.yaml").write_text("validation: {crop_ratio: 1.0, crop: ffcv}\nresolution: {max_res: 192}\n")
    told = [*arguments, f"--config-file={tmp_path}/told.yaml", "--data.interpolation=bilinear"]
    config, taken, _ = load_run_config([*told, "--data.mean=0.1,0.1,0.1", "--data.std=0.2,0.2,0.2"])
    assert taken == "took side 160, interpolation bicubic from timm's test_efficientnet_gn.r160_in1k"
    assert (config.validation.crop_ratio, config.validation.crop, config.data.interpolation) == (
        1.0,
        "ffcv",
        "bilinear",
    )
    assert (config.resolution.min_res, config.resolution.max_res) == (160, 192)  # the option's own default, and told
    assert config.data.mean == (0.1, 0.1, 0.1)
    assert load_run_config(["--model.arch=test_efficientnet_gn"])[1] == ""
    with pytest.raises(UserError, match=r"data\.mean and data\.std belong together"):
        main([*told, "--data.mean=0.1,0.1,0.1", "--data.train_dataset=x", "--data.val_dataset=x"])


def test_a_continued_run_keeps_what_it_took(
    small_betons: Betons, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--model.arch=test_efficientnet_gn",
        f"--model.weights={weights}",
        "--training.amp=off",
        "--training.epochs=1",
    )
    arguments = options(small_betons, tmp_path, *words, "--lr.lr_peak_epoch=0", "--logging.run=r")
    main(arguments)
    assert "took crop torchvision, crop ratio 0.95, interpolation bicubic, training" in capsys.readouterr().out
    cfg = timm.get_pretrained_cfg("test_efficientnet_gn")
    final = load_checkpoint(tmp_path / "r" / "final.pt")
    assert final["normalisation"] == {"mean": list(cfg.mean), "std": list(cfg.std)}
    stored = json.loads((tmp_path / "r" / "params.json").read_text())["config"]
    assert (stored["validation"]["crop_ratio"], stored["validation"]["interpolation"]) == (0.95, "bicubic")
    assert stored["validation"]["resolution"] == [32]
    # Other files under the same name, or none: a run is its own.
    stored["validation"]["crop_ratio"] = 0.5
    (tmp_path / "r" / "params.json").write_text(json.dumps({"config": stored}))
    weights.unlink()
    config, taken, _ = load_run_config([*arguments, "--training.resume=auto"])
    assert (config.validation.crop_ratio, config.data.mean, taken) == (0.5, tuple(cfg.mean), "")
