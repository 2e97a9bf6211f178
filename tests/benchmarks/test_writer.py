"""benchmarks/writer.py: both writers really convert, its figures follow from its measurements, bad options end it."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import writer
from benchmarks.conversion import WRITERS
from benchmarks.writer import Run, convert, link_images, summarise, table
from ffcv_train.system.errors import UserError
from tests.support.photographs import ROOT, crops_of_photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs in the class folders a and b."""
    root = tmp_path_factory.mktemp("photographs")
    for i, photograph in enumerate(crops_of_photographs(6, 200, 400)):
        file = root / "ab"[i % 2] / f"{i}.JPEG"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph).save(file, quality=90)
    return root


@pytest.mark.parametrize("name", WRITERS)
def test_both_convert(folder: Path, tmp_path: Path, name: str) -> None:
    link_images(folder, tmp_path / "images", 20)
    run = convert(name, tmp_path, "proportion", 15, 2)
    assert run.writer == name and run.images == 15
    assert 0 < run.seconds < run.program_seconds and run.cpu_seconds > 0
    # About half of the images as pixels, of which there are 3 · 300 · 300 on average; and a page of tables.
    assert 15 * 3 * 300 * 300 / 8 < run.size - (8 << 20) < 15 * 3 * 400 * 400 + (16 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_failure_is_told(folder: Path, tmp_path: Path) -> None:
    link_images(folder, tmp_path / "images", 8)
    next((tmp_path / "images").glob("*/*")).unlink()
    (tmp_path / "images" / "a" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"ffcv_train failed: .*a/x\.jpg in .* cannot be read"):
        convert("ffcv_train", tmp_path, "jpg", 7, 1)


@pytest.mark.parametrize("count", [3, 6, 15])
def test_images_are_spaced_evenly_or_repeated(folder: Path, tmp_path: Path, count: int) -> None:
    link_images(folder, tmp_path / "images", count)
    links = sorted((tmp_path / "images").glob("*/*"), key=lambda link: link.name)
    files = sorted(folder.glob("*/*"))
    expected = [files[2 * i] for i in range(3)] if count == 3 else [files[i % 6] for i in range(count)]
    assert [link.resolve() for link in links] == [file.resolve() for file in expected]
    assert all(link.parent.name == file.parent.name for link, file in zip(links, expected, strict=True))


def runs_of(name: str, start: float, per_image: list[float], cpu: float) -> list[Run]:
    """A quarter of 100 images and all of them, once for each of `per_image` seconds."""
    return [
        Run(
            name, images, start + images * per_image[i], 1 + images * cpu, 2 + start + images * per_image[i], 7 * images
        )
        for i in range(len(per_image))
        for images in (25, 100)
    ]


def test_figures_follow_from_the_measurements() -> None:
    runs = runs_of("ffcv_train", 1.0, [0.01] * 3, 0.002) + runs_of("ffcv", 3.0, [0.02] * 3, 0.003)
    ours, stock = summarise(runs, 100)
    assert (ours["writer"], stock["writer"], ours["rounds"], ours["bytes"]) == ("ffcv_train", "ffcv", 3, 700)
    assert ours["images_per_s"] == pytest.approx(100) and stock["images_per_s"] == pytest.approx(50)
    assert ours["startup_s"] == pytest.approx(3) and stock["startup_s"] == pytest.approx(5)
    assert ours["images_per_s_with_startup"] == pytest.approx(100 / 4)
    assert ours["cpu_ms_per_image"] == pytest.approx(2) and stock["cpu_ms_per_image"] == pytest.approx(3)
    assert ours["speedup_images_per_s"] == pytest.approx(2) and stock["speedup_images_per_s"] == 1
    assert ours["speedup_cpu_ms_per_image"] == pytest.approx(1.5)
    assert ours["speedup_images_per_s_with_startup"] == pytest.approx(7 / 4)


def test_spread_is_that_of_the_rounds() -> None:
    slower = [0.01, 0.02, 0.04]
    runs = runs_of("ffcv_train", 1.0, slower, 0.002) + runs_of("ffcv", 1.0, [0.02] * 3, 0.002)
    low, high = summarise(runs, 100)[0]["images_per_s_spread"]
    # The quarter's median is that of 0.02 s: 1.5 s.
    assert (low, high) == pytest.approx((75 / (5 - 1.5), 75 / (2 - 1.5)))


def test_too_few_images_are_told() -> None:
    runs = runs_of("ffcv_train", 1.0, [0.0], 0.002) + runs_of("ffcv", 1.0, [0.02], 0.002)
    with pytest.raises(UserError, match="--images"):
        summarise(runs, 100)


def test_table_and_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(name: str, scratch: Path, mode: str, images: int, workers: int) -> Run:
        assert len(list((scratch / "images").glob("*/*"))) == 40 and workers == 3
        seconds = images * (0.01 if name == "ffcv_train" else 0.02)
        return Run(name, images, seconds, seconds, 1 + seconds, 1 << 20)

    monkeypatch.setattr(writer, "convert", pretend)
    options = f"--folder {folder} --workers 3 --images 40 --rounds 5 --json {tmp_path / 'f.json'}"
    monkeypatch.setattr(sys, "argv", ["writer.py", *options.split()])
    writer.main()
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [(row["mode"], row["writer"]) for row in rows] == [
        ("jpg", "ffcv_train"),
        ("jpg", "ffcv"),
        ("proportion", "ffcv_train"),
        ("proportion", "ffcv"),
    ]
    assert all(row["rounds"] == 5 and row["workers"] == 3 for row in rows)
    assert rows[0]["images_per_s"] == pytest.approx(100)
    printed = capsys.readouterr().out
    assert table(rows) in printed and "2.00 (2.00–2.00)" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--modes jpg,rar", "'rar' is none of jpg, proportion"),
        ("--workers 0", "at least 1"),
        ("--images 7", "at least 8"),
        ("--json none/f.json", "is no folder"),
        (f"--folder {ROOT}/none", "holds no class folders"),
    ],
)
def test_bad_options_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["writer.py", "--folder", str(folder), *options.split()])
    with pytest.raises(UserError, match=message):
        writer.main()


def test_unknown_options_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["writer.py", "--folder", str(folder), "--round", "3"])
    with pytest.raises(SystemExit) as exit_:
        writer.main()
    assert exit_.value.code == 2
