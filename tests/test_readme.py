"""The README's example in Python."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from ffcv_train.cli import quickstart
from tests.support.photographs import ROOT


def test_the_readme_s_python_runs_on_what_the_quickstart_leaves(
    small_betons: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, on smaller data sets and an epoch under the quickstart's names."""
    (block,) = re.findall(r"## Use it from Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    folder = tmp_path / quickstart.OUTPUT
    quickstart.write_images(folder / "images")
    recipe = yaml.safe_load((ROOT / "ffcv_train" / "cli" / "quickstart.yaml").read_text())
    recipe["resolution"], recipe["lr"]["lr_peak_epoch"] = {"min_res": 24, "max_res": 24}, 0.5
    recipe["training"]["epochs"] = 1
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(recipe))
    for name, file in zip(("train", "val"), small_betons, strict=True):
        (folder / f"{name}.beton").symlink_to(file)
        (folder / f"{name}.beton.json").symlink_to(f"{file}.json")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block, found)
    images = found["images"]
    assert isinstance(images, torch.Tensor) and images.shape == (64, 3, 160, 160) and images.dtype == torch.uint8
    assert Path(str(found["final"])).is_file()
    assert re.fullmatch(r"tensor\(\[[0-3]\]\) (0|1)\.\d+", capsys.readouterr().out.splitlines()[-1])
