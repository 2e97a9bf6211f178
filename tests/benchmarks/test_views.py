"""benchmarks/views.py measures both ways and says so."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import views
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.system.errors import UserError
from tests.support.photographs import crops_of_photographs


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["views", *map(str, arguments)])
    views.main()


def test_both_ways_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(crops_of_photographs(6, 200, 300)):
        file = tmp_path / "photos" / f"class{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    crop = RandomResizedCrop((0.9, 1.0))
    monkeypatch.setattr(views, "CASES", {"six": [(16, crop)] * 6})
    out = tmp_path / "out.json"
    run(monkeypatch, "--folder", tmp_path / "photos", "--images", 10, "--rounds", 3, "--json", out)
    rows = json.loads(out.read_text())["rows"]
    assert [row["tiles"] for row in rows] == [True, False]
    for row in rows:
        assert len(row["together"]) == len(row["apart"]) == 3 and min(row["together"]) > 0
        assert row["ratio"] > 1  # six decodes to one, by the process's own time
    assert "six, no tiles: one decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--rounds", 0), "--rounds must be at least 1"), (("--json", "no/where"), "is no folder")]
)
def test_bad_input_is_a_sentence(
    arguments: tuple[object, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "--folder", tmp_path, *arguments)
