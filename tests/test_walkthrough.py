"""The README's lines for photographs of one's own, as they stand there, one after the other."""

import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save

from ffcv_train.doctor import trials
from tests.support.hub import Hub, in_place, serving
from tests.support.photographs import ROOT, crops_of_photographs

WEIGHTS = "tf_efficientnet_lite0.in1k"
SHORT = (
    "--training.epochs=1 --training.amp=off --training.device=cpu --training.batch_size=8 --lr.warmup_epochs=0"
    " --lr.lr=0.1 --resolution.min_res=32 --resolution.max_res=32 --validation.resolution=32 --data.num_workers=1"
)
"""What makes a test of them"""


def lines() -> list[str]:
    """The commands of the README's section, without the shell's assignment, which they hold."""
    section = (ROOT / "README.md").read_text().split("## Your own photographs\n")[1].split("\n## ")[0]
    code = section.split("```\n")[1]
    (data,) = re.findall(r'^DATA="(.*)"$', code, flags=re.M)
    return [line.replace("$DATA", f"{data} {SHORT}") for line in code.splitlines() if not line.startswith("DATA=")]


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python …` does, in this process."""
    python, *words = shlex.split(line)
    assert python == "python"
    if words[0] == "-m":
        monkeypatch.setattr(sys, "argv", words[1:])
        monkeypatch.delitem(sys.modules, f"{words[1]}.__main__", raising=False)  # another test may have imported it
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_from_a_folder_of_photographs_to_a_classifier_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slower than others, for it is eight commands and a network of 3 million weights: the README's."""
    for number, pixels in enumerate(crops_of_photographs(44, 40, 60)):
        folder = tmp_path / ("photographs" if number < 40 else "new_photographs") / ("oak", "fir")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels[:, :, number % 2] //= 2
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=95)
    (tmp_path / "finetune_configs").symlink_to(ROOT / "finetune_configs")
    torch.manual_seed(0)
    weights = save(timm.create_model("tf_efficientnet_lite0").state_dict())
    stated = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": timm.get_pretrained_cfg(WEIGHTS).to_dict()}
    files = {"model.safetensors": weights, "config.json": json.dumps(stated).encode()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "OVERFIT_STEPS", 20)
    with serving(Hub({f"timm/{WEIGHTS}": files})) as hub:
        in_place(hub, tmp_path / "hf", monkeypatch)
        for line in lines():
            run(line, monkeypatch)
            assert "NOT learned" not in capsys.readouterr().out, line
    record = json.loads((tmp_path / "runs" / "mine" / "log.jsonl").read_text())
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    assert metrics["results"][0]["top_1"] == record["top_1"]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(map(str, Path("new_photographs").rglob("*.jpg")))
    assert {row["class_1"] for row in rows} <= {"fir", "oak"}
    session = onnxruntime.InferenceSession(tmp_path / "mine.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["fir", "oak"]
    hub_folder = tmp_path / "runs" / "mine" / "hub"
    assert timm.create_model(f"local-dir:{hub_folder}", pretrained=True).num_classes == 2
    for written in ("report.html", "unsure.png", "runs/mine/classes.csv", "runs/mine/hub/README.md"):
        assert (tmp_path / written).stat().st_size > 0
