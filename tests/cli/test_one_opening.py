"""Commands read a checkpoint once, whatever they want of it: configuration, weights, class names, normalisation."""

import importlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_train import load_network
from ffcv_train.cli.main import COMMANDS
from ffcv_train.config.schema import DistillConfig
from ffcv_train.evaluation.subject import read_subject
from ffcv_train.evaluation.suites import calibration
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.errors import UserError
from ffcv_train.training.distill import Teacher
from tests.support.runs import Betons, options

SMALL = ["--training.device=cpu", "--training.amp=off", "--data.num_workers=1", "--validation.batch_size=25"]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each file was read by torch.load, and how often its checksums were compared, by "NAME KIND"."""
    counts: Counter[str] = Counter()
    load, test = torch.load, zipfile.ZipFile.testzip

    def loading(file: Any, *arguments: Any, **more: Any) -> Any:
        counts[f"{Path(str(file)).name} load"] += 1
        return load(file, *arguments, **more)

    def testing(archive: zipfile.ZipFile) -> str | None:
        counts[f"{Path(str(archive.filename)).name} checksums"] += 1
        return test(archive)

    monkeypatch.setattr(torch, "load", loading)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", testing)
    yield counts


def run(command: str, *words: str) -> None:
    importlib.import_module(f"ffcv_train.cli.{COMMANDS[command][0]}").main(list(words))


COMMAND_LINES: dict[str, Callable[[Path, Betons], list[str]]] = {
    "eval": lambda out, data: [f"--data.val_dataset={data[1]}", f"--output={out}/metrics.json"],
    "eval, suites": lambda out, data: [f"--data.val_dataset={data[1]}", "--suite=selective,calibration"],
    "predict": lambda out, data: [str(data[1]), f"--output={out}/predictions.csv"],
    "export": lambda out, data: ["--format=safetensors", f"--output={out}/network.safetensors"],
    "push": lambda out, data: ["--to=somebody/net", f"--folder={out}/hub", "--dry-run"],
    "logits": lambda out, data: [f"--data.val_dataset={data[1]}", "--features", f"--output={out}/logits.pt"],
    "gradcam": lambda out, data: [f"--images={data[1]}", "--count=2", f"--output={out}/maps.png"],
    "measure": lambda out, data: [f"--output={out}/measures.json"],
}


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_reads_its_checkpoint_once(
    name: str, small_run: Path, small_betons: Betons, tmp_path: Path, readings: Counter[str]
) -> None:
    words = COMMAND_LINES[name](tmp_path, small_betons)
    run(name.partition(",")[0], f"--checkpoint={small_run / 'final.pt'}", *words, *SMALL)
    assert {key: count for key, count in readings.items() if key.startswith("final.pt")} == {
        "final.pt load": 1,
        "final.pt checksums": 1,
    }


def test_another_programs_checkpoints_are_read_once(
    small_run: Path, small_betons: Betons, tmp_path: Path, readings: Counter[str]
) -> None:
    torch.save(load_checkpoint(small_run / "final.pt")["model"], tmp_path / "plain.pt")
    readings.clear()
    words = ["--model.arch=cifar_resnet20", "--validation.resolution=32", *SMALL]
    run("eval", f"--checkpoint={tmp_path / 'plain.pt'}", f"--data.val_dataset={small_betons[1]}", *words)
    files = [str(small_run / "final.pt"), str(tmp_path / "plain.pt")]
    output = ["--images", str(small_betons[1]), "--count=1", f"--output={tmp_path}/maps.png"]
    run("gradcam", "--checkpoint", *files, *output, *words)
    load_network(tmp_path / "plain.pt", arch="cifar_resnet20", num_classes=4, device="cpu", amp="off", resolution=32)
    assert readings["plain.pt load"] == readings["plain.pt checksums"] == 3  # by three of them
    assert readings["final.pt load"] == readings["final.pt checksums"] == 1


def test_training_reads_its_weights_and_its_teacher_once(
    small_run: Path, small_betons: Betons, tmp_path: Path, readings: Counter[str]
) -> None:
    for name in ("weights.pt", "teacher.pt", "plain.pt"):
        (tmp_path / name).write_bytes((small_run / "final.pt").read_bytes())
    short = ["--training.epochs=1", "--lr.lr_peak_epoch=0", "--resolution.end_ramp=0"]
    run("train", *options(small_betons, tmp_path, f"--model.weights={tmp_path / 'weights.pt'}", *short))
    half, device = ((0.5,) * 3, (0.5,) * 3), torch.device("cpu")
    for name, arch in (("teacher.pt", ""), ("plain.pt", "cifar_resnet20")):
        teacher = DistillConfig(type="hard", teacher=str(tmp_path / name), teacher_arch=arch)
        Teacher(teacher, 4, None, {32}, half, device, channels_last=False)
    for name in ("weights.pt", "teacher.pt", "plain.pt"):
        assert (readings[f"{name} load"], readings[f"{name} checksums"]) == (1, 1), name


def test_a_temperature_goes_into_no_other_checkpoint_than_the_one_it_was_fitted_to(
    small_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes((small_run / "last.pt").read_bytes())
    checkpoint = read_subject(str(path)).checkpoint
    assert checkpoint is not None
    found = {"temperature": 1.5, "fitted_on": {}}
    calibration.keep(checkpoint, "model", found)
    assert load_checkpoint(path)["temperature"] == {"value": 1.5, "weights": "model", "fitted_on": {}}
    written = path.read_bytes()
    with pytest.raises(UserError, match=r"last\.pt has changed since it was read, .*; run this again"):
        calibration.keep(checkpoint, "model", found)
    assert path.read_bytes() == written
