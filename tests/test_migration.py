"""docs/migration.md: its commands are taken whole by the commands they name, and one of them trains."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.convert.write import WriterRun
from ffcv_train.evaluation.classifier import load_network
from ffcv_train.losses import create_criterion
from ffcv_train.training.setup import batch_sizes, check_config
from tests.support.options import OPTIONS, options_in
from tests.support.photographs import ROOT
from tests.support.runs import Betons, log, options, train

PAGE = (ROOT / "docs" / "migration.md").read_text()
COMMANDS = [shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]
TRAINING = [command for command in COMMANDS if "train_imagenet.py" in command]


def arguments(command: list[str]) -> list[str]:
    """What follows the script's name."""
    return command[next(i for i, word in enumerate(command) if word.endswith(".py")) + 1 :]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", TRAINING, ids=lambda command: command[-1])
def test_a_training_command_is_a_consistent_run(command: list[str]) -> None:
    config = load_config(RunConfig, arguments(command))
    check_config(config)
    devices = next((int(word.split("=")[1]) for word in command if word.startswith("--nproc_per_node")), 1)
    batch_sizes(config, devices)
    create_criterion(config.loss, 1000, config.training.epochs)


def test_other_commands_are_taken() -> None:
    others = [command for command in COMMANDS if command not in TRAINING]
    for command in others:
        rest = arguments(command)
        if "eval.py" in command:
            assert rest[0] == "--checkpoint"
            load_config(RunConfig, rest[2:])
        else:
            assert "write_dataset.py" in command
            load_config(WriterRun, rest)
    assert len(TRAINING) >= 5 and len(others) >= 2


def test_every_option_that_the_page_names_exists() -> None:
    """But for the names that others have in these sections, which stand in the first column of their tables."""
    theirs = {key for row in re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE) for key, _ in options_in(row)}
    named = {key for key, _ in options_in(PAGE)}
    assert len(named & OPTIONS) > 50
    assert not named - OPTIONS - theirs


@pytest.mark.parametrize("command", TRAINING[:2], ids=["FFCV", "MaxSup"])
def test_a_command_trains(command: list[str], small_betons: Betons, tmp_path: Path) -> None:
    """On images of 32 pixels and a small network; everything else as the page has it."""
    small = ("model.arch", "data.", "resolution.", "validation.resolution", "batch", "epochs", "logging", "device")
    own = [word for word in options(small_betons, tmp_path) if any(part in word for part in small)]
    more = ["--training.epochs=1", "--model.use_blurpool=0", "--lr.lr_peak_epoch=0", "--training.amp=bf16"]
    more += ["--resolution.start_ramp=0"]
    given = arguments(command) + own + more + ["--training.global_batch_size=0", "--logging.run=r", "--lr.lr=0.01"]
    run = train(small_betons, tmp_path, *given)
    (line,) = log(run)
    assert line["train_loss"] > 0 and "flip_averaged" in line


@pytest.mark.parametrize("blurpool", [0, 1])
def test_our_checkpoints_load_elsewhere_in_three_lines(
    blurpool: int, small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--model.arch=resnet18", f"--model.use_blurpool={blurpool}", "--training.amp=off", "--training.epochs=1"]
    run = train(small_betons, tmp_path, *more, "--training.ema_decay=0.5", "--lr.lr_peak_epoch=0")
    monkeypatch.chdir(run)
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "final.pt" in block)
    read, create, load = lines.splitlines()
    (timms,) = (f"network = {call}" for call in re.findall(r"`(timm\.create_model\(state.*?)`", PAGE))
    (filters,) = re.findall(r"`(from ffcv_train\.models\.blurpool .*?)`", PAGE)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = load_network("final.pt", device="cpu", amp="off").model(images)
    for line in (create, timms):
        names: dict[str, Any] = {"torch": torch, "torchvision": torchvision, "timm": timm}
        exec("\n".join([read, line]), names)
        if blurpool:
            with pytest.raises(RuntimeError, match="blur_filter"):
                exec(load, names)
            exec(filters, names)
        exec(load, names)
        with torch.no_grad():
            torch.testing.assert_close(names["network"].eval()(images), ours)
    if not blurpool:  # what the page warns of
        plain = timm.create_model("resnet18", num_classes=4, checkpoint_path="final.pt").state_dict()
        assert all(plain[key].equal(value) for key, value in names["state"]["model"].items())
