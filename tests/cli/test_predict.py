"""predict: the same logits as evaluation's, from whatever holds images; what cannot be read is named and left out."""

import csv
import json
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ffcv_train.cli import predict
from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.main import run_main
from ffcv_train.data.open import open_data_set
from ffcv_train.evaluation.extraction import outputs
from ffcv_train.evaluation.run import requested_network
from ffcv_train.evaluation.suites import calibration
from ffcv_train.models.checkpoint import load_checkpoint, save_checkpoint
from ffcv_train.models.opening import open_checkpoint
from ffcv_train.system.errors import UserError
from tests.support.photographs import crops_of_photographs
from tests.support.runs import ALONE, Betons

COMMON = ["--training.amp=off", "--training.device=cpu", "--data.num_workers=2", "--validation.batch_size=16"]


@pytest.fixture
def arguments(small_run: Path) -> list[str]:
    return [f"--checkpoint={small_run / 'final.pt'}", *COMMON]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 photographs of many sizes, JPEG and PNG, in folders of classes, and what is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(crops_of_photographs(20, 33, 180, seed=5)):
        (folder / f"class{number % 4}").mkdir(exist_ok=True)
        name = f"class{number % 4}/{number:02d}.{'png' if number % 3 == 0 else 'jpg'}"
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image")
    return folder


def wanted(arguments: list[str], data: Path, form: str) -> np.ndarray:
    """Probabilities float64 [N, K] of evaluation's own logits of a data set."""
    request = parse_request([*arguments, f"--data.val_dataset={data}", f"--data.format={form}"])
    data_set = open_data_set(data, form)
    network = requested_network(request, ALONE.device, None)
    logits = torch.cat([batch.logits for batch in outputs(network, request.config, data_set, ALONE, None)])
    return torch.softmax(logits.double(), dim=1).numpy()


def written(path: Path) -> tuple[list[str], np.ndarray]:
    """Paths, and probabilities float64 [N, 4] by label, of a .jsonl of all four classes."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    table = np.zeros((len(records), 4))
    for row, record in zip(table, records, strict=True):
        ranked = [entry["probability"] for entry in record["predictions"]]
        assert ranked == sorted(ranked, reverse=True)
        for entry in record["predictions"]:
            assert entry["class"] == f"class{entry['label']}"
            row[entry["label"]] = entry["probability"]
    return [record["path"] for record in records], table


def test_predictions_equal_evaluation_s(
    arguments: list[str], photographs: Path, small_betons: Betons, tmp_path: Path
) -> None:
    """Of a .beton, a folder and a zip: to the last bit."""
    archive = tmp_path / "photographs.zip"
    folder = open_data_set(photographs, "folder")
    names = [folder.source.name(index) for index in range(20)]  # type: ignore[union-attr]
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(photographs / name, name)
        file.writestr("__MACOSX/._00.png", b"no image")
    (tmp_path / "photographs_map.txt").write_text("".join(f"{name}\t{name[5]}\n" for name in names))
    output = tmp_path / "predictions.jsonl"
    for path, form in ((small_betons[1], "beton"), (photographs, "folder"), (archive, "zip")):
        predict.main([*arguments, str(path), f"--output={output}"])
        paths, table = written(output)
        assert np.array_equal(table, wanted(arguments, path, form)), form
        assert paths[0] == f"{path}/{names[0] if form != 'beton' else 'photo0.jpg'}"


def test_calibrated_probabilities_are_those_of_the_temperature(
    small_run: Path, error_of: Callable[..., str], photographs: Path, tmp_path: Path
) -> None:
    checkpoint, output = tmp_path / "final.pt", tmp_path / "predictions.jsonl"
    shutil.copy(small_run / "final.pt", checkpoint)
    arguments = [f"--checkpoint={checkpoint}", *COMMON]
    message = error_of(*arguments, "--calibrated", photographs)
    assert "holds no temperature for its model weights" in message and "leave --calibrated out" in message
    calibration.keep(open_checkpoint(checkpoint), "model", {"temperature": 2.5, "fitted_on": {}})
    predict.main([*arguments, "--calibrated", str(photographs), f"--output={output}"])
    expected = wanted(arguments, photographs, "folder") ** (1 / 2.5)
    np.testing.assert_allclose(written(output)[1], expected / expected.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-7)
    predict.main([*arguments, str(photographs), f"--output={output}"])
    np.testing.assert_allclose(written(output)[1], wanted(arguments, photographs, "folder"), rtol=1e-12)


def test_files_and_several_inputs(
    arguments: list[str], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inputs keep their order, wherever they stand among the options; a table of the likeliest, or lines."""
    one, two = photographs / "class1" / "01.jpg", photographs / "class0" / "00.png"
    output = tmp_path / "new" / "predictions.csv"
    words = [str(one), *arguments, "--top", "2", str(photographs / "class2"), "--output", str(output), "--", str(two)]
    predict.main(words)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows][:2] == [str(one), str(photographs / "class2" / "02.jpg")]
    assert rows[-1]["path"] == str(two)
    assert len(rows) == 7
    assert list(rows[0]) == ["path", "label_1", "class_1", "probability_1", "label_2", "class_2", "probability_2"]
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)
    capsys.readouterr()
    names = tmp_path / "names.txt"
    names.write_text("daisy\nrose\ntulip\noak\n")
    predict.main([*arguments, str(one), "--top=1", f"--names={names}", "--device=cpu"])
    name = ["daisy", "rose", "tulip", "oak"][int(rows[0]["label_1"])]
    assert capsys.readouterr().out == f"{one}: {name} {float(rows[0]['probability_1']):.1%}\n"


def test_bad_images_are_left_out(
    arguments: list[str], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.jpg", photographs / "class1" / "01.jpg"
    bad.write_bytes(good.read_bytes()[:300])
    output = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as exit_:
        predict.main([*arguments, str(bad), str(good), f"--output={output}"])
    assert exit_.value.code == 1
    assert len(output.read_text().splitlines()) == 2
    printed = capsys.readouterr()
    assert f"left out: {bad} cannot be read" in printed.out
    assert "1 of 2 images could not be read" in printed.err


def test_numbers_that_are_none_are_no_predictions(small_run: Path, photographs: Path, tmp_path: Path) -> None:
    state = load_checkpoint(small_run / "final.pt")
    state["model"]["fc.weight"] *= 1e38
    save_checkpoint(state, tmp_path / "odd.pt")
    words = [f"--checkpoint={tmp_path / 'odd.pt'}", *COMMON, str(photographs), f"--output={tmp_path / 'p.csv'}"]
    with pytest.raises(
        UserError, match=rf"logits of {photographs}/class0/00\.png are not finite; .*--training\.amp=off"
    ):
        predict.main(words)
    assert not (tmp_path / "p.csv").exists()


def test_a_damaged_sample_of_a_beton_is_left_out(arguments: list[str], jpg_beton: Path, tmp_path: Path) -> None:
    data_set = open_data_set(jpg_beton)
    content = bytearray(jpg_beton.read_bytes())
    start = int(data_set.ptrs[3])  # type: ignore[union-attr]
    content[start : start + 20] = bytes(20)
    damaged = tmp_path / "damaged.beton"
    damaged.write_bytes(content)
    with pytest.raises(SystemExit):
        predict.main([*arguments, str(damaged), f"--output={tmp_path / 'out.csv'}"])
    paths = [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert paths == [f"{damaged}/{index}" for index in range(67) if index != 3]


def test_the_least_sure_are_drawn(
    arguments: list[str], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    real = predict.draw_unsure
    monkeypatch.setattr(predict, "draw_unsure", lambda *given: (drawn.extend(given), real(*given))[1])
    output, grid = tmp_path / "p.csv", tmp_path / "grid.png"
    predict.main([*arguments, str(photographs), f"--output={output}", f"--grid={grid}", "--grid-count=5"])
    with output.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["probability_1"]))[:5]
    images, names, guesses = drawn
    assert names == [Path(row["path"]).name for row in rows]
    assert [ranked[0] for ranked in guesses] == [(row["class_1"], float(row["probability_1"])) for row in rows]
    assert [image.shape for image in images] == [(32, 32, 3)] * 5
    with Image.open(grid) as picture:
        assert picture.size[0] > 500


def test_parquet_is_pandas(
    arguments: list[str], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can be imported; the table is what the .csv holds."""
    tables: list[dict[str, list[Any]]] = []

    class DataFrame:
        def __init__(self, columns: dict[str, list[Any]]) -> None:
            tables.append(columns)

        def to_parquet(self, file: Any, index: bool) -> None:
            file.write(b"PAR1")

    for name in ("pandas", "pyarrow"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        module.DataFrame = DataFrame  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    predict.main([*arguments, str(photographs), f"--output={tmp_path / 'p.parquet'}", "--top=1"])
    assert (tmp_path / "p.parquet").read_bytes() == b"PAR1"
    assert list(tables[0]) == ["path", "label_1", "class_1", "probability_1"]
    assert len(tables[0]["path"]) == 20


@pytest.fixture
def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda: predict.main([*arguments, *map(str, words)]))
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_what_does_not_fit_is_refused(error_of: Callable[..., str], photographs: Path, tmp_path: Path) -> None:
    bad, names, empty = tmp_path / "bad.jpg", tmp_path / "names.txt", tmp_path / "empty"
    bad.write_text("no image")
    names.write_text("one\ntwo\n")
    empty.mkdir()
    output = tmp_path / "out.csv"
    for words, expected in [
        ([], "no images to look at"),
        ([tmp_path / "none"], "none does not exist"),
        ([empty], "holds no images"),
        ([bad, f"--output={output}"], "none of the 1 images could be read; the first:"),
        ([photographs, "--output=out.xlsx"], "must end in .csv, .jsonl or .parquet"),
        ([photographs, "--top=0"], "--top must be at least 1"),
        ([photographs, "--grid=grid.txt"], "must end in .png"),
        ([photographs, "--grid=grid.png", "--grid-count=0"], "--grid-count must be at least 1"),
        ([photographs, f"--names={names}"], "has 2 names, but"),
    ]:
        assert expected in error_of(*words)
    assert not output.exists()


def test_parquet_without_pandas_is_refused(
    error_of: Callable[..., str], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict.check_format.__globals__["importlib"].util, "find_spec", lambda name: None)
    assert "needs pandas and pyarrow" in error_of(photographs, f"--output={tmp_path / 'p.parquet'}")
