"""viz/report.py: pages of runs and comparisons, the rules behind "what to try next", and what it refuses."""

import base64
import html.parser
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ffcv_train.analysis.report import rules
from ffcv_train.analysis.report.content import Table, Text, drawing, tables_of
from ffcv_train.analysis.report.curves import draw_runs, mean_curve
from ffcv_train.analysis.report.page import NOTHING_WRONG
from ffcv_train.analysis.report.runs import Run, read_run
from ffcv_train.metrics.per_class import SampleResults
from ffcv_train.system.errors import UserError
from tests.support.photographs import ROOT

EPOCHS = 20
VOID = {"meta", "img", "br", "hr", "link", "input"}


def healthy(epochs: int = EPOCHS, **options: float) -> list[dict[str, Any]]:
    """The log of a run in which nothing is wrong."""
    records = []
    for epoch in range(epochs):
        t = (epoch + 1) / epochs
        records.append(
            {
                "epoch": epoch,
                "train_loss": 1.0 + 2.0 * (1 - t) ** 2,
                "lr": 0.5 * (1 - t),
                "resolution": 160 if epoch < epochs // 2 else 192,
                "alpha": 0.1 + 0.1 * epoch / epochs,
                "images_per_s": 1000.0 if epoch < epochs // 2 else 700.0,
                "data_wait": 0.01,
                "peak_memory_gb": 2.0,
                "seconds": 60.0,
                "top_1": 0.75 - 0.5 * (1 - t) ** 2,
                "top_5": 0.9,
                "nll": 1.1 + 1.5 * (1 - t) ** 2,
                "ece": 0.03,
                "flip_averaged": {"top_1": 0.76 - 0.5 * (1 - t) ** 2},
                "val_seconds": 5.0,
                **options,
            }
        )
    return records


def write_run(folder: Path, records: list[dict[str, Any]] | None = None, **config: Any) -> Path:
    """A run's folder; `config` is "section__key" to value."""
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in (healthy() if records is None else records)]
    (folder / "log.jsonl").write_text("".join(line + "\n" for line in lines))
    content: dict[str, dict[str, Any]] = {
        "model": {"arch": "resnet50"},
        "data": {"val_dataset": "/data/val.beton"},
        "loss": {"name": "maxsup"},
        "training": {"epochs": EPOCHS, "seed": 0},
        "logging": {"run": folder.name},
    }
    for key, value in config.items():
        section, name = key.split("__")
        content[section][name] = value
    params = {"config": content, "num_classes": 10, "versions": {"torch": "2.0"}, "command": "python train_imagenet.py"}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def run_script(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(ROOT / "viz" / "report.py"), run_name="__main__")


def page_of(*arguments: object, output: Path) -> str:
    """The page that the script writes, checked: one whole document that asks nothing of a network."""
    run_script(*arguments, "--output", output)
    text = output.read_text(encoding="utf-8")
    checker = Balanced()
    checker.feed(text)
    assert checker.open == []
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "<script" not in text
    assert "default-src 'none'" in text
    return text


class Balanced(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def texts(page: str) -> str:
    """What a reader reads, white space as one space."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_script(*arguments)
        assert exit_.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return run


def test_a_healthy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "good")
    page = page_of(run, output=tmp_path / "r.html")
    text = texts(page)
    assert "good 20 75.00 76.00 75.00 (epoch 20) 90.00 1.1000 0.0300 1.0000 850 1.0% 20 min 00 s 1 min 40 s 2.0" in text
    assert NOTHING_WRONG in text
    assert "resnet50, validated on val.beton" in text
    assert page.count('<figure class="panel">') == 9
    assert page.count("<svg role=") == 9
    assert "training.epochs 20" in text
    assert "torch 2.0" in text
    assert "differing option" not in text
    assert "page: " in capsys.readouterr().out


def test_several_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", healthy(EPOCHS - 5), loss__name="ls")]
    text = texts(page_of(*runs, output=tmp_path / "r.html"))
    assert "differing option a b loss.name maxsup ls All options" in text  # and not logging.run
    assert "Not finished b: 15 of 20 epochs" in text
    assert "b 15 of 20 " in text
    assert "different data sets" not in text
    other = write_run(tmp_path / "c", data__val_dataset="other.beton")
    text = texts(page_of(runs[0], other, output=tmp_path / "r.html"))
    assert (
        "The runs were validated on different data sets (" in text and "val.beton, other.beton); do not compare" in text
    )
    twins = [write_run(tmp_path / group / "same") for group in ("x", "y")]
    text = texts(page_of(*twins, output=tmp_path / "r.html"))
    assert "x/same, y/same" in text


def test_texts_are_escaped(tmp_path: Path) -> None:
    name = "<b onmouseover=alert(1)>&'\"x"
    run = write_run(tmp_path / name, model__arch="<i>resnet</i>", data__val_dataset="<u>.beton")
    (run / "figures").mkdir()
    figure = Figure(figsize=(1, 1))
    figure.savefig(run / "figures" / "<em>.png")
    page = page_of(run, output=tmp_path / "r.html")
    for tag in ("<b ", "<i>", "<u>", "<em>"):
        assert tag not in page
    assert "&lt;b onmouseover=alert(1)&gt;&amp;&#39;&#34;x" in page
    assert "$" not in texts(page)


def test_a_cut_off_log(tmp_path: Path, error_of: Callable[..., str]) -> None:
    run = write_run(tmp_path / "cut")
    log = run / "log.jsonl"
    log.write_text(log.read_text()[:-40])
    text = texts(page_of(run, output=tmp_path / "r.html"))
    assert "cut: The last line of log.jsonl is cut off and was left out." in text
    assert "cut: 19 of 20 epochs" in text
    (run / "params.json").write_text("{")
    text = texts(page_of(run, output=tmp_path / "r.html"))
    assert "params.json cannot be read, so its settings are not known" in text
    assert "All options" not in text
    log.write_text("x\n" + log.read_text())
    assert "line 1 is not the record of an epoch" in error_of(run, "--output", tmp_path / "r.html")


@pytest.mark.parametrize("line", ['{"epoch": 1e400}', "[" * 100_000, '{"epoch": [1]}', "7"])
def test_a_line_of_the_log_that_is_something_else(tmp_path: Path, line: str) -> None:
    run = write_run(tmp_path / "run")
    log = run / "log.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    with pytest.raises(UserError, match=r"log\.jsonl line 1 is not the record of an epoch"):
        read_run(run)


def test_values_of_other_types_are_left_out(tmp_path: Path) -> None:
    """As a file holds that another program wrote, or somebody edited."""
    odd: dict[str, Any] = {"resolution": [160], "images_per_s": "fast", "top_1": {}, "train_loss": "low", "lr": [1]}
    run = write_run(tmp_path / "run", [{**record, **odd} for record in healthy()])
    sections = {"training": {"epochs": "20", "seed": {"a": [1]}}, "data": 3, "model": ["resnet50"], "loss": None}
    for params in (
        {"config": sections, "num_classes": {}, "versions": 3, "command": [1], "git": {"revision": 2}},
        {"config": 3, "num_classes": "ten", "versions": ["a"]},
        {"config": {"model": {"arch": 1e400}}, "device": {"name": []}},
    ):
        (run / "params.json").write_text(json.dumps(params))
        (run / "measures.json").write_text(json.dumps({"train": 3, "single": [], "suites": 7}))
        assert "What to try next" in texts(page_of(run, output=tmp_path / "r.html"))


def test_what_a_stopped_evaluation_left_is_no_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    kept: dict[str, Any] = {"about": {}, "records": {}, "done": 3, "sums": {}, "results": 3}
    for name in ("metrics_suites.part.json", "metrics_corruptions.0of1.json", "m_corruptions.11of16.json"):
        (run / name).write_text(json.dumps(kept))
    assert "Left out" not in texts(page_of(run, output=tmp_path / "r.html"))
    (run / "metrics_corruptions.json").write_text(json.dumps(kept))  # a name of the user's
    assert "metrics_corruptions.json" in texts(page_of(run, output=tmp_path / "r.html"))


def test_refusals(tmp_path: Path, error_of: Callable[..., str]) -> None:
    out = ("--output", tmp_path / "r.html")
    run = write_run(tmp_path / "run")
    assert "has no log.jsonl" in error_of(tmp_path, *out)
    assert "does not exist" in error_of(tmp_path / "none", *out)
    assert "must end in .html" in error_of(run, "--output", tmp_path / "r.pdf")
    assert "given twice" in error_of(run, run, *out)
    assert "ffcv-train logits --output writes" in error_of(run, "--logits", tmp_path / "none.pt", *out)
    empty = write_run(tmp_path / "empty", [])
    assert "has no epoch yet" in error_of(empty, *out)
    many = [write_run(tmp_path / f"run{i}") for i in range(13)]
    assert "at most 12 runs apart, not 13" in error_of(*many, *out)
    folder = comparison(tmp_path / "comparison")
    assert "page of its own" in error_of(folder, run, *out)
    assert not (tmp_path / "r.html").exists()
    assert "cannot write" in error_of(run, "--output", tmp_path / "no" / "r.html")


def comparison(folder: Path, seeds: int = 2) -> Path:
    """What compare.py leaves, with runs whose top-1 differs by criterion and seed."""
    folder.mkdir()
    (folder / "comparison.json").write_text("{}")
    for c, criterion in enumerate(("ce", "maxsup")):
        for seed in range(seeds):
            records = [{**r, "top_1": r["top_1"] + 0.01 * c + 0.002 * seed} for r in healthy()]
            run = write_run(folder / "runs" / f"{criterion}_seed{seed}", records, loss__name=criterion)
            measures = {"train": {"top_1": 0.8 + 0.2 * c}, "single": {"top_1": 0.75}}
            (run / "measures.json").write_text(json.dumps(measures))
    return folder


def test_a_comparison(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "comparison")
    text = texts(page_of(folder, output=tmp_path / "r.html"))
    assert "Comparison of ce, maxsup" in text
    assert "has no table yet" in text
    (folder / "compare.md").write_text(
        "# title\n\n```\npython compare.py\n```\n\nTrain `a|b`.\n\n"
        "| criterion | top-1 % |\n| --- | ---: |\n| ce | 75.25 |\n\nMeans over seeds.\n\n## Validation\n\n"
        "| criterion | seeds | top-1 % |\n| --- | --- | ---: |\n| ce | 2 | 75.10 ± 0.14 |\n\n## Difference\n\n"
        "| quality | ce |\n| --- | ---: |\n| top-1 % | **+1.00** [<0, 2] |\n\n![x](compare.png)\n"
    )
    summary: dict[str, Any] = {"criteria": {"maxsup": {}, "ce": {}}, "missing": ["ls_seed0"]}
    summary["failed"] = [{"run": "ols_seed0"}]
    column = {"title": "top-1 %", "suite": "", "cells": {"ce": "75.25"}}
    summary["qualities"] = {"columns": [column], "note": "Means over seeds."}
    (folder / "compare.json").write_text(json.dumps(summary))
    Figure(figsize=(2, 2)).savefig(folder / "compare.svg")
    begun = folder / "runs" / "ls_seed0"
    begun.mkdir()
    (begun / "log.jsonl").touch()
    page = page_of(folder, output=tmp_path / "r.html")
    text = texts(page)
    assert "Comparison of maxsup, ce" in text  # the table's order
    assert "Validation criterion seeds top-1 % ce 2 75.10 ± 0.14" in text
    assert text.index("75.10 ± 0.14") < text.index("What to try next")
    assert text.count("75.25") == text.count("Means over seeds.") == 1  # the opening, not a second time
    assert "<td><b>+1.00</b> [&lt;0, 2]</td>" in page
    assert "python compare.py" not in text
    assert "Failed: ols_seed0" in text
    assert "Not yet run when the table was written: ls_seed0" in text
    assert "ls_seed0 is not shown" in text
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "maxsup (2 seeds) ce (2 seeds)" in text
    assert "maxsup_seed1: top-1 100.0% and 75.0%" in text
    assert "ce_seed0: top-1" not in text
    # The band between two seeds is drawn.
    assert "fill-opacity: 0.2" in page


def test_curves_are_means_and_ranges() -> None:
    logs = [
        [{"epoch": 0, "nll": 1.0}, {"epoch": 1}, {"epoch": 2, "nll": 4.0}],
        [{"epoch": 0, "nll": 2.0}, {"epoch": 2, "nll": None}],
    ]
    curve = mean_curve(logs, "nll")
    assert curve is not None
    assert curve.epochs.tolist() == [1, 3]
    np.testing.assert_array_equal(curve.values, [1.5, np.nan])
    assert curve.low is not None
    assert curve.high is not None
    assert (curve.low[0], curve.high[0]) == (1.0, 2.0)
    assert mean_curve(logs, "top_1") is None
    single = mean_curve(logs[:1], "nll")
    assert single is not None
    assert (single.values.tolist(), single.low) == ([1.0, 4.0], None)


def test_panels_take_the_page_s_colours(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / f"r{i}")) for i in range(7)]
    panels = draw_runs(runs)
    assert [key.label for key in panels.legend] == [f"r{i}" for i in range(7)]
    _, svg = panels.panels[0]
    for i in range(6):
        assert f"var(--series-{i})" in svg
    colors = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert colors <= {"#ffffff"}, colors
    assert "currentColor" in svg
    assert "<style" not in svg
    assert "width=" not in svg.partition(">")[0]
    # Identifiers of one panel clash with no other's.
    seen: set[str] = set()
    for _, svg in panels.panels:
        ids = set(re.findall(r' id="([^"]+)"', svg))
        assert not ids & seen
        seen |= ids


def test_what_else_lies_in_the_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "figures" / "deep").mkdir(parents=True)
    for name in ("gradcam", "deep/projection", "near_zero"):
        for kind in ("png", "svg"):
            Figure(figsize=(3, 1)).savefig(run / "figures" / f"{name}.{kind}", dpi=200)
    (run / "broken.png").write_text("no picture")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 8, generator=generator)
    logits = torch.randn(200, 4, generator=generator) + 3 * torch.eye(4)[labels]
    content = {"logits": logits, "labels": labels, "features": features}
    torch.save({"model": {"w": torch.zeros(1)}}, run / "epoch_3.pt")  # another checkpoint
    bins = {"count": [0] * 14 + [40], "confidence": [None] * 14 + [0.95], "accuracy": [None] * 14 + [0.9]}
    result = {"resolution": 224, "count": 40, "top_1": 0.9, "nll": 0.4, "ece": 0.05, "bins": bins}
    (run / "metrics.json").write_text(json.dumps({"checkpoint": "x/final.pt", "results": [result]}))
    feature = {"d_within": 0.25, "d_total": 0.5, "r_squared": 0.5, "samples": 40, "classes": 4}
    feature |= {"smallest_class": 10, "zero_features": 0, "label": "val", "about": {"data_set": "/x/val.beton"}}
    (run / "figures" / "features.json").write_text(json.dumps({"inputs": [feature]}))
    (run / "figures" / "transfer.json").write_text("[]")

    page = page_of(run, output=tmp_path / "r.html")
    text = texts(page)
    assert "run: gradcam" in text
    assert "run: projection" in text
    assert "run: near_zero" in text
    assert "broken.png is no PNG and no SVG" in text
    assert "transfer.json cannot be read and was left out" in text
    assert "run: val val.beton 40 4 0.2500 0.5000 0.5000" in text
    assert page.count("<img ") == 5  # three of the folder, reliability, features

    torch.save(content, run / "val.pt")
    page = page_of(run, output=tmp_path / "r.html")
    top_1 = 100 * float((logits.argmax(dim=1) == labels).double().mean())
    assert f"run 200 4 {top_1:.2f}" in texts(page)
    assert "run: near_zero" not in texts(page)  # drawn from the logits instead
    assert page.count("<img ") == 7  # two of the folder, near zero, density, distributions, reliability, features
    figures = [base64.b64decode(part).decode() for part in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    (reliability,) = [figure for figure in figures if "underconfident" in figure]
    assert re.findall(r"<!-- run: top-1 .*?%,", reliability) == [f"<!-- run: top-1 {top_1:.2f}%,"]  # once

    torch.save({"logits": logits[:, :3].clone(), "labels": labels.clamp_max(2)}, tmp_path / "three.pt")
    page = page_of(run, "--logits", tmp_path / "three.pt", output=tmp_path / "r.html")
    assert "three 200 3" in texts(page)
    assert page.count("<img ") == 10  # figures of other class counts are others


def test_pictures_have_their_size(tmp_path: Path) -> None:
    figure = Figure(figsize=(5, 1))
    for kind in ("png", "svg"):
        figure.savefig(tmp_path / f"f.{kind}", dpi=200)
        found = drawing(tmp_path / f"f.{kind}")
        assert (found.title, found.width) == ("f", 480)  # 5 inches of 96 pixels
    with pytest.raises(UserError, match="cannot read"):
        drawing(tmp_path / "none.png")


def test_tables_of_markdown() -> None:
    items = tables_of(
        "# T\n\n## A\n\nsays `x`\n\n| a\\|b | c |\n| --- | ---: |\n| 1 | **2** |\n\n## B\n\n| d |\n| --- |\n"
    )
    assert isinstance(items[0], Text)
    assert (items[0].title, items[0].text) == ("A", "says x")
    assert isinstance(items[1], Table)
    assert (items[1].header, items[1].rows) == (["a|b", "c"], [["1", "**2**"]])
    assert isinstance(items[2], Table)
    assert (items[2].title, items[2].rows) == ("B", [])


def changed(key: str, values: dict[int, Any]) -> list[dict[str, Any]]:
    """A healthy log with some epochs' values replaced."""
    return [{**r, **({key: values[r["epoch"]]} if r["epoch"] in values else {})} for r in healthy()]


def every(key: str, of: Callable[[int], Any]) -> list[dict[str, Any]]:
    return changed(key, {epoch: of(epoch) for epoch in range(EPOCHS)})


LAST = EPOCHS - 1
LOSS = [record["train_loss"] for record in healthy()]


@pytest.mark.parametrize(
    ("title", "wrong", "right"),
    [
        ("Not finished", healthy()[:-1], healthy()),
        ("Loss not finite", changed("train_loss", {7: None}), healthy()),
        ("Not learning", every("top_1", lambda e: 0.19), every("top_1", lambda e: 0.21)),
        (
            "Loss spike",
            changed("train_loss", {9: 1.26 * LOSS[8]}),
            changed("train_loss", {9: 1.24 * LOSS[8]}),
        ),
        (
            "Validation loss rises while training loss falls",
            every("nll", lambda e: 1.0 + 0.01 * abs(e - 13)),
            every("nll", lambda e: 1.0 + 0.008 * abs(e - 13)),
        ),
        (
            "Validation loss rises while training loss falls",  # of late only: the last epochs may jump
            every("nll", lambda e: 1.0 + 0.06 * abs(e - 16)),
            every("nll", lambda e: 1.0 + 0.06 * abs(e - 18)),
        ),
        ("Gap between training and validation loss", changed("nll", {LAST: 1.51}), changed("nll", {LAST: 1.15})),
        ("Poor calibration", changed("ece", {LAST: 0.11}), changed("ece", {LAST: 0.09, 3: 0.4})),
        ("Top-1 still rises at the end", changed("top_1", {LAST: 0.755}), changed("top_1", {LAST: 0.753})),
        ("Waiting for data", every("data_wait", lambda e: 0.06), every("data_wait", lambda e: 0.04 if e else 0.9)),
        (
            "Throughput falls",
            every("images_per_s", lambda e: 1000 if e < 10 else 700 if e < 15 else 590),
            every("images_per_s", lambda e: 1000 if e < 10 else 700 if e < 15 else 600),
        ),
        ("Slow first epoch", changed("images_per_s", {0: 690}), changed("images_per_s", {0: 710})),
    ],
)
def test_rules(title: str, wrong: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    def titles(records: list[dict[str, Any]]) -> list[str]:
        params = {"config": {"training": {"epochs": EPOCHS}}, "num_classes": 10}
        return [finding.title for finding in rules.find(Run("run", Path(), tuple(records), params))]

    assert titles(wrong).count(title) == 1
    assert title not in titles(right)


def test_rules_on_measures_and_short_logs() -> None:
    for gap, expected in ((0.16, 1), (0.14, 0)):
        measures = {"train": {"top_1": 0.7 + gap}, "single": {"top_1": 0.7}}
        found = rules.find(Run("run", Path(), tuple(healthy()), {}, measures))
        assert [f.title for f in found].count("Gap between training and validation set") == expected
    assert rules.find(Run("run", Path(), tuple(healthy()), {})) == []
    assert rules.find(Run("run", Path(), ({"epoch": 0, "train_loss": 2.0},), {})) == []
    assert rules.find(Run("run", Path(), ({"epoch": 0},), {}, {"train": None})) == []
    # Validations far apart say nothing about the end.
    far = [{k: v for k, v in r.items() if k != "top_1" or r["epoch"] in (4, 19)} for r in healthy()]
    assert rules.still_rising(far, EPOCHS) is None
    # A resolution that grows slows a run down rightly.
    assert rules.slowing_down(healthy()) is None


def test_a_diverged_file_costs_its_own_figures_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    labels = torch.tensor([0, 1, 2] * 4)
    torch.save({"logits": torch.full((12, 3), torch.nan), "labels": labels}, run / "bad.pt")
    torch.save({"logits": torch.randn(12, 3), "labels": labels.int(), "features": torch.ones(12, 2) / 0}, run / "ok.pt")
    text = texts(page_of(run, output=tmp_path / "r.html"))
    assert "bad: " in text and "features of " in text and "not finite" in text
    assert "Distributions of logits" in text


def test_classes_of_an_evaluation(tmp_path: Path) -> None:
    """The matrix, drawn once, the most frequent errors, the classes of lowest recall, and all in a folded table."""
    run = write_run(tmp_path / "run")
    labels = torch.arange(90) % 30
    guesses = torch.eye(30)[labels]
    guesses[labels == 7] = torch.eye(30)[9]
    samples = SampleResults(90)
    samples.update(guesses, labels, torch.arange(90))
    per_class = samples.compute(labels.numpy(), 30, [f"sort {i}" for i in range(30)]).plain()
    bins = {"count": [0] * 14 + [90], "confidence": [None] * 14 + [0.95], "accuracy": [None] * 14 + [0.9]}
    result = {"resolution": 224, "count": 90, "top_1": 0.9, "nll": 0.4, "ece": 0.05, "bins": bins}
    content = {"checkpoint": "x/final.pt", "results": [result], "per_class": {"resolution": 224, **per_class}}
    (run / "metrics.json").write_text(json.dumps(content))
    Figure(figsize=(3, 1)).savefig(run / "classes_confusion.png", dpi=200)
    page = page_of(run, output=tmp_path / "r.html")
    text = texts(page)
    assert "Most frequent errors class taken for images share of the class sort 7 sort 9 3 100.0%" in text
    assert "sort 7 3 0.0% 0.0% – 0.0%" in text
    assert page.count("<img ") == 2  # the matrix, reliability
    assert text.count("sort 29 3 100.0%") == 1
    del content["per_class"]["counts"]
    (run / "metrics.json").write_text(json.dumps(content))
    assert "metrics.json is not what a command here writes" in texts(page_of(run, output=tmp_path / "r.html"))
