"""Every example runs, is short, and trains."""

import importlib
import math
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests.support.photographs import ROOT, crops_of_photographs

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, image in enumerate(crops_of_photographs(32, 40, 60)):
        file = tmp_path / "images" / f"class{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "images"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 40


def test_pytorch_loop(small_betons: tuple[Path, Path]) -> None:
    loss = importlib.import_module("examples.pytorch_loop").main(str(small_betons[0]), epochs=8)
    assert loss < math.log(4)  # that of a network that knows nothing


def test_two_views(small_betons: tuple[Path, Path]) -> None:
    loss = importlib.import_module("examples.two_views").main(str(small_betons[0]), epochs=8)
    assert loss < 0.9 * math.log(63)  # that of embeddings that are all alike


def test_lightning_trainer(small_betons: tuple[Path, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        main = importlib.import_module("examples.lightning_trainer").main
        trainer = main(str(small_betons[0]), epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert trainer.global_step == 2 * (96 // 32)


def test_accelerate_loop(folder: Path) -> None:
    assert math.isfinite(importlib.import_module("examples.accelerate_loop").main(str(folder), epochs=1, cpu=True))


def test_write_beton(folder: Path, tmp_path: Path) -> None:
    assert importlib.import_module("examples.write_beton").main(str(folder), str(tmp_path / "out.beton")) == 32
