"""The benchmark of large sets, on small ones."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scale
from ffcv_train.system.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", *map(str, arguments)])
    scale.main()


def test_time_and_memory_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds, because ranks are processes of their own, which import PyTorch."""
    run(
        *(monkeypatch, "--samples", 40_000, "--classes", 100, "--world-size", 2, "--batch-size", 50, "--batches", 3),
        *("--threads", "1,2", "--scratch", tmp_path, "--json", tmp_path / "out.json"),
    )
    (found,) = json.loads((tmp_path / "out.json").read_text())["results"]
    # 25 bytes of tables; what else a process took on the way is spread over few samples here.
    assert found["samples"] == 40_000 and 25 <= found["open_private"] < 400
    for step in scale.STEPS:
        assert found[f"{step}_s"] > 0 and found[f"{step}_cpu_s"] >= 0 and found[f"{step}_peak"] >= 0
    assert set(found["threads"]) == {"1", "2"}
    for one in found["threads"].values():
        assert one["images_per_s"] > 0 and 0 < one["main_us"] < one["cpu_us"]
    assert "40,000 samples" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "1000000,many"], "--samples must be whole numbers from 1"),
        (["--samples", "4095"], "fewer than two global batches, 4096"),
        (["--threads", "0"], "--threads must be whole numbers from 1"),
        (["--image-bytes", 2], "--image-bytes must be at least 3"),
        (["--world-size", 1], "--world-size must be at least 2"),
        (["--json", "nowhere/x.json"], "is no folder"),
    ],
)
def test_bad_input_is_a_sentence(more: list[object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *more)
