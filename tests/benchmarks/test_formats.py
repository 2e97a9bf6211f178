"""The benchmark of the data formats, on small photographs."""

import json
import sys
from pathlib import Path

import pytest
import timm.data  # noqa: F401 - once for all worker processes, which are forks; each would take seconds for it
from PIL import Image

from benchmarks import formats
from ffcv_train.system.errors import UserError
from tests.support.photographs import crops_of_photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(crops_of_photographs(24, 60, 90)):
        path = root / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return root


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["formats", *map(str, arguments)])
    formats.main()


def test_every_format_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        *(monkeypatch, "--folder", folder, "--workers", 1, "--memory-workers", 2, "--resolution", 32),
        *("--batch-size", 8, "--epochs", 2, "--repeats", 1, "--policy", "rand_augment"),
        *("--json", tmp_path / "out.json"),
    )
    rows = {row["format"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["beton", "zip", "zip, cached", "folder"]
    for row in rows.values():
        assert len(row["rates"]) == 2 and min(row["rates"]) <= row["images_per_s"] <= max(row["rates"])
    assert rows["beton"]["ratio"] == 1 and rows["beton"]["memory_mb"] is None
    assert all(1 < rows[name]["memory_mb"] < 5000 for name in rows if name != "beton")
    assert "zip, cached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--json", "nowhere/x.json"], "is no folder"),
        (["--batch-size", 25], "lower --training.batch_size"),
    ],
)
def test_bad_input_is_a_sentence(
    folder: Path, more: list[object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, "--folder", folder, *more)
