"""compare.py: what it refuses, how it runs, stops and continues, what it measures and writes."""

import argparse
import dataclasses
import io
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.stats
import torch
from rich.console import Console

from ffcv_train.analysis.report.page import make_page
from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.compare import parse_plan
from ffcv_train.cli.measure import TRANSFER, add_measure_options, parse_measure_request, transfer_files
from ffcv_train.cli.measure import main as measure_main
from ffcv_train.cli.suite_arguments import suite_options
from ffcv_train.cli.train import main as train_main
from ffcv_train.comparison import estimate, report
from ffcv_train.comparison import measure as measuring
from ffcv_train.comparison import run as running
from ffcv_train.comparison.columns import METRICS
from ffcv_train.comparison.differences import spread
from ffcv_train.comparison.estimate import print_plan
from ffcv_train.comparison.measure import is_measured, measure, write_sample_results
from ffcv_train.comparison.plan import (
    ComparisonPlan,
    PlannedRun,
    check_plan,
    claim_folder,
    devices,
    measure_command,
    train_command,
)
from ffcv_train.comparison.published import PublishedRow, TrainingClasses, published
from ffcv_train.comparison.report import read_measures, summarise_runs, to_markdown, write_report
from ffcv_train.config.schema import ModelConfig, RunConfig, TrainingConfig
from ffcv_train.data.sources.selection import long_tail
from ffcv_train.evaluation.collect import Collected
from ffcv_train.evaluation.suites.run import SUITES
from ffcv_train.evaluation.suites.subject import SuiteOptions
from ffcv_train.metrics.selective import confidence_scores, selective
from ffcv_train.metrics.temperature import calibration, split_halves
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.models.factory import create_model
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json
from ffcv_train.system.progress import ProgressLine
from tests.support.photographs import ROOT, crops_of_photographs
from tests.support.runs import run_here


@pytest.fixture
def settings(small_betons: tuple[Path, Path]) -> list[str]:
    return [
        f"--data.train_dataset={small_betons[0]}",
        f"--data.val_dataset={small_betons[1]}",
        "--data.num_workers=1",
        "--model.arch=cifar_resnet20",
        "--training.epochs=1",
        "--training.batch_size=16",
        "--training.device=cpu",
        "--training.amp=off",
        "--validation.batch_size=25",
        "--validation.resolution=32",
        "--validation.crop_ratio=1",
        "--resolution.min_res=32",
        "--resolution.max_res=32",
        "--lr.lr=0.05",
        "--lr.lr_peak_epoch=0.5",
        "--logging.tensorboard=0",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--losses=ce,foo"], "'foo', which is no criterion; there are ce, ls, maxsup"),
        ([], "--losses must name criteria"),
        (["--losses="], "--losses must name criteria"),
        (["--losses=ce,,ls"], "--losses must name criteria"),
        (["--losses=ce,ls,ce"], "names 'ce' twice"),
        (["--losses=ce", "--seeds="], "--seeds must name seeds"),
        (["--losses=ce", "--seeds=1,1"], "names '1' twice"),
        (["--losses=ce", "--seeds=1,01"], "names a seed twice"),
        (["--losses=ce", "--seeds=-1"], "whole numbers from 0"),
        (["--losses=ce", "--seeds=99999999999"], "whole numbers from 0"),
        (["--losses=ce", "--loss.name=ls"], "ffcv-train compare sets loss.name itself"),
        (["--losses=ce", "--training.seed=3"], "ffcv-train compare sets training.seed itself"),
        (["--losses=ce", "--training.resume=x"], "ffcv-train compare sets training.resume itself"),
        (["--losses=ce", "--logging.folder", "x"], "ffcv-train compare sets logging.folder itself"),
        (["--losses=ce", "--logging.run=x"], "ffcv-train compare sets logging.run itself"),
        (["--losses=ce", "--transfer-train=x"], "belong together"),
        (["--losses=ce", "--runs-per-device=0"], "--runs-per-device must be at least 1"),
        (["--losses=ce", "--runs-per-device=two"], "--runs-per-device must be a whole number"),
        (["--losses=ce", "--suite=groups,transfer"], "add --transfer-train and --transfer-val"),
        (["--losses=ce", "--suite=transfers"], "'transfers', which is no suite; there are calibration,"),
        (["--losses=ce", "--epochs=3"], "'--epochs' (did you mean 'training.epochs'?)"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_plan([*words, "--out=o"])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_out_is_needed() -> None:
    with pytest.raises(UserError, match="--out DIR"):
        parse_plan(["--losses=ce"])


def test_plan_and_commands(tmp_path: Path, settings: list[str]) -> None:
    words = ["--losses", "ce, maxsup", "--seeds", "3,0", "--out", str(tmp_path / "o"), *settings]
    plan = parse_plan([*words, "--transfer-train=a", "--transfer-val=b"])
    assert [run.name for run in plan.runs] == ["ce_seed3", "maxsup_seed3", "ce_seed0", "maxsup_seed0"]
    command = train_command(plan, PlannedRun("maxsup", 3))
    assert command[1:4] == ["-m", "ffcv_train", "train"] and set(settings) <= set(command)
    assert command[-5:] == [
        "--loss.name=maxsup",
        "--training.seed=3",
        "--training.resume=auto",
        f"--logging.folder={tmp_path / 'o' / 'runs'}",
        "--logging.run=maxsup_seed3",
    ]
    assert measure_command(plan, PlannedRun("ce", 0))[-2:] == ["--transfer-train=a", "--transfer-val=b"]


def test_transfer_is_named_among_the_suites(tmp_path: Path, settings: list[str]) -> None:
    asked = ["--suite=calibration,transfer", "--transfer-train=a", "--transfer-val=b"]
    plan = parse_plan(["--losses=ce", f"--out={tmp_path}", *asked, *settings])
    assert plan.suites.suites == ("calibration",) and plan.transfer == (Path("a"), Path("b"))
    command = measure_command(plan, PlannedRun("ce", 0))
    options = argparse.ArgumentParser()
    add_measure_options(options.add_argument_group())
    given, _ = options.parse_known_args(command[4:])
    assert transfer_files(given) == plan.transfer
    assert suite_options(given, {"train_dataset": "t.beton"}, beside=[TRANSFER]).suites == ("calibration",)


def test_a_comparison_from_before_an_option_goes_on(tmp_path: Path, settings: list[str]) -> None:
    plan = parse_plan(["--losses=ce", "--seeds=0", f"--out={tmp_path / 'out'}", *settings])
    claim_folder(plan)
    file = tmp_path / "out" / "comparison.json"
    content = json.loads(file.read_text())
    del content["settings"]["data"]["flip"], content["settings"]["finetune"]
    file.write_text(json.dumps(content))
    check_plan(plan)
    other = parse_plan(["--losses=ce", "--seeds=0", f"--out={tmp_path / 'out'}", *settings, "--data.flip=0.1"])
    with pytest.raises(UserError, match=r"data\.flip was 0\.5, is 0\.1"):
        check_plan(other)


def test_checks_before_the_first_run(tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--losses=ce,ls", "--seeds=0", f"--out={tmp_path / 'o'}", *settings]
    plan = parse_plan(words)
    check_plan(plan)
    assert not (tmp_path / "o").exists()
    for change, sentence in (
        ("--data.val_dataset=missing.beton", "missing.beton"),
        ("--training.batch_size=500", "fewer than one global batch of 500"),
        ("--training.ema_decay=0.99996", "averages weights over about 25,000 steps"),
        ("--transfer-train=missing.beton --transfer-val=missing.beton", "missing.beton"),
        ("--model.arch=resnet999", "resnet999"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_plan(parse_plan([*words, *change.split()]))
    claim_folder(plan)
    check_plan(plan)
    check_plan(parse_plan([*words, "--data.num_workers=3"]))  # how fast, not what
    with pytest.raises(UserError, match=r"another|other settings: lr\.lr was 0\.05, is 0\.1"):
        check_plan(parse_plan([*words, "--lr.lr=0.1"]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        check_plan(dataclasses.replace(plan, out=tmp_path / "full"))
    with pytest.raises(UserError, match="is a file"):
        check_plan(dataclasses.replace(plan, out=tmp_path / "full" / "thesis.tex"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        check_plan(plan)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(config) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert devices(config) == ["5", "GPU-abc"]
    assert devices(RunConfig(training=TrainingConfig(device="cpu"))) == [None]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices(config) == [None]


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

# Stands for train_imagenet.py: ends like it, also after a SIGTERM, and writes down when it ran on what.
FAKE_TRAINING = """
import os, pathlib, signal, sys, time
folder, journal = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
def stop(number, frame):
    (folder / "last.pt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
start = time.time()
print("the loss is not finite") if folder.name in sys.argv[5:] else time.sleep(float(sys.argv[3]))
(folder / "started").touch()
end = time.monotonic() + 120
while len(list(folder.parent.glob("*/started"))) < int(sys.argv[4]):
    time.sleep(0.01)
    if time.monotonic() > end:
        sys.exit("alone")
with journal.open("a") as file:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else ""
    file.write(f"{folder.name} {os.environ.get('CUDA_VISIBLE_DEVICES')} {start} {time.time()} {cores}\\n")
if folder.name in sys.argv[5:]:
    sys.exit(2)
(folder / "log.jsonl").write_text('{"epoch": 1, "top_1": 0.5}\\n')
(folder / "final.pt").touch()
"""
FAKE_MEASURING = """
import os, pathlib, sys
(pathlib.Path(sys.argv[1]) / "measures.json").write_text('{"format": 1, "transfer": null}')
if hasattr(os, "sched_getaffinity"):
    (pathlib.Path(sys.argv[1]) / "cores").write_text(",".join(map(str, sorted(os.sched_getaffinity(0)))))
"""


class Fake:
    """Replaces the commands of a comparison; `seconds` a training takes, `failing` are names of runs.

    No training ends before `beside` have begun.
    """

    def __init__(self, folder: Path) -> None:
        self.plan = ComparisonPlan(
            RunConfig(training=TrainingConfig(device="cpu", epochs=2)),
            (),
            ("ce", "ls"),
            (0, 1),
            folder / "out",
            None,
            False,
        )
        self.journal, self.seconds, self.beside, self.failing = folder / "journal", 0.0, 0, list[str]()
        claim_folder(self.plan)

    def train(self, plan: ComparisonPlan, run: PlannedRun) -> list[str]:
        arguments = [str(plan.folder(run)), str(self.journal), str(self.seconds), str(self.beside), *self.failing]
        return [sys.executable, "-c", FAKE_TRAINING, *arguments]

    def measure(self, plan: ComparisonPlan, run: PlannedRun) -> list[str]:
        return [sys.executable, "-c", FAKE_MEASURING, str(plan.folder(run))]

    def ran(self) -> list[list[str]]:
        return [text.split() for text in self.journal.read_text().splitlines()] if self.journal.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = Fake(tmp_path)
    monkeypatch.setattr(running, "train_command", fake.train)
    monkeypatch.setattr(running, "measure_command", fake.measure)
    monkeypatch.setattr(running, "_POLL_SECONDS", 0.01)
    yield fake


def test_one_at_a_time_and_failures(fake: Fake, capfd: pytest.CaptureFixture) -> None:
    fake.failing = ["ls_seed0"]
    failures = running.run_all(fake.plan)
    assert [(f.run.name, f.stage, f.status) for f in failures] == [("ls_seed0", "train", 2)]
    assert [line[0] for line in fake.ran()] == ["ce_seed0", "ls_seed0", "ce_seed1", "ls_seed1"]
    times = [(float(line[2]), float(line[3])) for line in fake.ran()]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    printed = capfd.readouterr().out
    assert "ls_seed0: failed to train, ended with status 2" in printed and "the loss is not finite" in printed
    # Only what failed is tried again.
    fake.failing = []
    times_before = {path: path.stat().st_mtime_ns for path in fake.plan.out.glob("runs/*/measures.json")}
    assert len(times_before) == 3 and running.run_all(fake.plan) == []
    assert [line[0] for line in fake.ran()][4:] == ["ls_seed0"]
    assert "4 runs, 3 finished before; 1 to go" in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == before for path, before in times_before.items())


def test_runs_spread_over_gpus(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "devices", lambda config: ["4", "7"])
    fake.beside = 2
    assert running.run_all(fake.plan) == []
    ran = fake.ran()
    assert {line[1] for line in ran} == {"4", "7"} and len(ran) == 4
    if len(cores := CORES) > 1:
        used = {gpu: {line[4] for line in ran if line[1] == gpu} for gpu in ("4", "7")}
        half = len(cores) // 2
        assert used == {"4": {",".join(map(str, cores[:half]))}, "7": {",".join(map(str, cores[half:]))}}
        measured = {line[0]: (fake.plan.out / "runs" / line[0] / "cores").read_text() for line in ran}
        assert measured == {line[0]: line[4] for line in ran}


@pytest.mark.skipif(not CORES, reason="processes are bound to cores on Linux only")
def test_runs_whose_threads_the_user_has_counted_have_all_cores(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "devices", lambda config: ["4", "7"])
    data = dataclasses.replace(fake.plan.config.data, num_workers=3)
    fake.plan = dataclasses.replace(fake.plan, config=dataclasses.replace(fake.plan.config, data=data))
    assert running.run_all(fake.plan) == []
    assert {line[4] for line in fake.ran()} == {",".join(map(str, CORES))}


@pytest.mark.skipif(not CORES, reason="processes are bound to cores on Linux only")
def test_several_runs_share_a_device(fake: Fake) -> None:
    fake.plan = dataclasses.replace(fake.plan, runs_per_device=2)
    fake.beside = 2
    assert running.run_all(fake.plan) == []
    ran = fake.ran()
    assert len(ran) == 4 and {line[1] for line in ran} == {"None"}
    if len(CORES) > 1:
        half = len(CORES) // 2
        assert {line[4] for line in ran} == {",".join(map(str, some)) for some in (CORES[:half], CORES[half:])}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are bound to cores on Linux only")
def test_runs_beside_each_other_share_the_cores(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 8, 9, 11, 12})

    def slots(found: list[str | None], each: int = 1) -> list[tuple[str | None, set[int]]]:
        monkeypatch.setattr(running, "devices", lambda config: found)
        plan = dataclasses.replace(fake.plan, runs_per_device=each)
        return [(slot.device, set(slot.cores)) for slot in running.slots_of(plan, to_go)]

    to_go = 100
    assert slots(["0", "1", "GPU-a"]) == [("0", {2, 3}), ("1", {5, 8}), ("GPU-a", {9, 11, 12})]
    assert slots(["0", "1"], 2) == [("0", {2}), ("1", {3, 5}), ("0", {8, 9}), ("1", {11, 12})]
    assert slots([None]) == [(None, set())] and slots(["0"]) == [("0", set())]
    assert slots([None], 2) == [(None, {2, 3, 5}), (None, {8, 9, 11, 12})]
    assert slots(["0", "1"], 4) == [("0", set()), ("1", set())] * 4
    # No more than there are runs to go, on all of the cores.
    to_go = 3
    assert slots([None], 8) == slots([None], 2_000_000_000) == [(None, {2, 3}), (None, {5, 8}), (None, {9, 11, 12})]
    assert slots(["0", "1"], 8) == [("0", {2, 3}), ("1", {5, 8}), ("0", {9, 11, 12})]
    to_go = 1
    assert slots(["0", "1"]) == [("0", set())]


@pytest.mark.skipif(not CORES, reason="processes are bound to cores on Linux only")
@pytest.mark.parametrize(
    ("words", "gpus", "said"),
    [
        ([], 0, "measured for some seconds, validation reckoned from it), 1 at a time"),
        (["--runs-per-device=2"], 0, "on a run's share of the cores, alone: a lower bound), 2 at a time"),
        (["--runs-per-device=2"], 2, "on a run's share of the cores, alone: a lower bound), 4 at a time"),
        (["--runs-per-device=3"], 0, "on all cores, alone: a lower bound), 3 at a time"),
        (["--runs-per-device=2", "--data.num_workers=1"], 0, "on all cores, alone: a lower bound), 2 at a time"),
        ([], 2, "on a run's share of the cores), 2 at a time"),
    ],
)
def test_a_dry_run_measures_on_the_cores_that_a_run_will_have(
    words: list[str],
    gpus: int,
    said: str,
    tmp_path: Path,
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores, seen = set(range(4 if gpus else 2)), []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))

    def bind(_: int, some: Iterable[int]) -> None:
        cores.clear()
        cores.update(some)

    def examine(request: Any, process: Process) -> dict[str, Any]:
        seen.append((len(cores), torch.get_num_threads()))
        return {"training_seconds": 90.0, "stages": [{"resolution": 32, "step_images_per_s": 1e9}]}

    monkeypatch.setattr(os, "sched_setaffinity", bind)
    monkeypatch.setattr(estimate, "examine", examine)
    if gpus:
        monkeypatch.setattr(running, "devices", lambda config: ["0", "1"])
    settings = [word for word in settings if word != "--data.num_workers=1"]
    plan = parse_plan(["--losses=ce,ls", "--seeds=0,1", f"--out={tmp_path}", *settings, *words])
    before, text, threads = set(cores), io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        print_plan(plan, Console(file=text, width=400))
        assert torch.get_num_threads() == 3 and cores == before
    finally:
        torch.set_num_threads(threads)
    assert said in text.getvalue()
    share = 2 if gpus and not words else 1
    assert seen == [(share, share) if "share" in said else (len(before), 3)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_continued(fake: Fake, number: signal.Signals) -> None:
    fake.seconds = 30.0
    folder = fake.plan.folder(PlannedRun("ce", 0))

    def interrupt() -> None:
        while not folder.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(running.Interrupted, match="continue with the same command") as caught:
        running.run_all(fake.plan)
    thread.join()
    assert caught.value.exit_status == 128 + number
    assert (folder / "last.pt").exists() and not (folder / "final.pt").exists()
    fake.seconds = 0.0
    assert running.run_all(fake.plan) == []
    assert all(running.is_finished(fake.plan, run) for run in fake.plan.runs)


def test_a_killed_comparison_leaves_no_training_behind() -> None:
    program = (
        "import os, signal, subprocess; from ffcv_train.system.signals import end_with_parent\n"
        "print(subprocess.Popen(['sleep', '60'], preexec_fn=end_with_parent, start_new_session=True).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # Not a pipe to the end: the child would hold it open.
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_second_comparison_in_one_folder_is_refused(fake: Fake) -> None:
    with running._only_one(fake.plan.out), pytest.raises(UserError, match="another process runs the comparison"):
        running.run_all(fake.plan)


def test_transfer_asked_for_later_is_measured(fake: Fake, tmp_path: Path) -> None:
    assert running.run_all(fake.plan) == []
    later = dataclasses.replace(fake.plan, transfer=(tmp_path / "a", tmp_path / "b"))
    assert not any(running.is_finished(later, run) for run in later.runs)


def test_progress_says_how_far(fake: Fake, capfd: pytest.CaptureFixture) -> None:
    fake.seconds = 0.2
    running.run_all(fake.plan, ProgressLine(plain_interval=0.0))
    printed = capfd.readouterr().out
    assert "epochs 0/8" in printed and "ls_seed1 epoch 2/2 top-1 50.00%" in printed and "ETA" in printed


OOD = ["--ood-data", "other.beton"]


def fabricated(top_1: float, transfer: float | None = None) -> dict[str, Any]:
    plain = {"top_1": top_1, "top_5": 0.9, "nll": 1.25, "ece": 0.05}
    features = {"d_within": 0.2, "d_total": 0.5, "r_squared": 0.6}
    probe = {"accuracy": transfer, "grid": [1e-6, 1e5, 45], "held_out": 0.2, "train_samples": 5, "test_samples": 6}
    probe |= {"files": ["/d/a.beton", "/d/b.beton"], "at_edge": True}
    return {
        "format": 1,
        "single": plain,
        "flip_averaged": plain,
        "train": plain,
        "features": {"train": features, "val": features},
        "transfer": probe if transfer is not None else None,
    }


def test_summary_and_tables(tmp_path: Path, settings: list[str]) -> None:
    plan = parse_plan(["--losses=ce,ls,maxsup", "--seeds=0,1,2", f"--out={tmp_path}", *settings])
    top_1 = {("ce", 0): 0.80, ("ce", 1): 0.82, ("ce", 2): 0.87, ("ls", 1): 0.815}
    found = {PlannedRun(*key): fabricated(value, 0.7) for key, value in top_1.items()}
    failure = running.FailedRun(PlannedRun("ls", 0), "train", 2, tmp_path / "x.txt", "boom")
    summary = summarise_runs(plan, found, [failure])
    ce = summary["criteria"]["ce"]["metrics"]["top_1"]
    assert ce["mean"] == pytest.approx(np.mean([0.80, 0.82, 0.87]))
    assert ce["sd"] == pytest.approx(np.std([0.80, 0.82, 0.87], ddof=1))
    assert summary["criteria"]["ls"]["metrics"]["top_1"] == {"values": [0.815], "mean": 0.815, "sd": None}
    assert summary["differences"]["ls"]["seeds"] == [1]
    assert summary["differences"]["ls"]["metrics"]["top_1"]["mean"] == pytest.approx(-0.005)
    assert "maxsup" not in summary["criteria"] and "maxsup_seed0" in summary["missing"]
    text = to_markdown(plan, summary)
    assert "| ce | 3 | 83.00 ± 3.61 | 83.00 ± 3.61 | 90.00 ± 0.00 | 1.2500 ± 0.0000 | 0.0500 ± 0.0000 |" in text
    assert "| ls | one seed | 81.50 | 81.50 | 90.00 | 1.2500 | 0.0500 |" in text
    assert "45 log-spaced values 1e-06 to 1e+05, at the grid's end in 4 of 4 runs" in text
    assert "| quality | ls, one seed |" in text and "| top-1 % | -0.50 (one seed) |" in text
    note = summary["qualities"]["note"]
    assert "a mark is of the seeds that ce has too" in note and "bootstrap over validation samples" in note
    assert "**ls_seed0 failed** to train" in text and "**Not yet run**: maxsup_seed0" in text
    paths = write_report(plan, summary)
    assert sorted(path.name for path in paths) == ["compare.json", "compare.md", "compare.png", "compare.svg"]
    assert json.loads(paths[0].read_text())["criteria"]["ce"]["seeds"] == [0, 1, 2]
    assert [path.name for path in write_report(plan, summarise_runs(plan, {}, []))] == ["compare.json", "compare.md"]


def test_differences_have_intervals_and_say_where_there_is_none(tmp_path: Path, settings: list[str]) -> None:
    plan = parse_plan(["--losses=ce,ls,maxsup", "--seeds=0,1,2,3", f"--out={tmp_path}", *settings])
    ce, ls = [0.80, 0.82, 0.87, 0.81], [0.81, 0.832, 0.88, 0.818]
    maxsup = [0.79, 0.83, 0.86, 0.825]
    found = {
        PlannedRun(name, seed): fabricated(value)
        for name, values in (("ce", ce), ("ls", ls), ("maxsup", maxsup))
        for seed, value in enumerate(values)
    }
    summary = summarise_runs(plan, found, [])
    expected = scipy.stats.ttest_rel(ls, ce).confidence_interval(0.95)
    better = summary["differences"]["ls"]["metrics"]["top_1"]
    assert better["interval"] == pytest.approx([expected.low, expected.high])
    assert better["exceeds"] and better["seeds_needed"] == 3
    assert not summary["differences"]["maxsup"]["metrics"]["top_1"]["exceeds"]
    text = to_markdown(plan, summary)
    low, high = (f"{100 * value:+.2f}" for value in (expected.low, expected.high))
    assert "| quality | ls, 4 seeds | maxsup, 4 seeds |" in text
    assert f"| top-1 % | **+1.00** [{low}, {high}] | no difference: +0.1" in text
    assert "same seeds" not in text and "bootstrap" not in text
    # Seeds that are all alike tell no spread: neither an interval without width, nor a difference of nothing.
    assert "| NLL | +0.0000 (the same with every seed) | +0.0000 (the same with every seed) |" in text
    assert "too coarse to tell its spread" in text
    assert "| ls | 83.50 ▲ | 1.2500 |" in text and "| ce | 82.50 | 1.2500 |" in text
    needed = text.partition("## Seeds needed")[2]
    assert "| top-1 % | 3 | " in needed and "| NLL | cannot be told | cannot be told |" in needed


def test_one_seed_is_compared_over_samples(tmp_path: Path, settings: list[str]) -> None:
    """With files from before more than the first two arrays were kept."""
    plan = parse_plan(["--losses=ce,ls,maxsup", "--seeds=0", f"--out={tmp_path}", *settings])
    random = np.random.default_rng(0)
    correct = {"ce": np.arange(1000) < 700, "ls": np.arange(1000) < 760}
    correct["maxsup"] = random.permutation(correct["ce"])
    for name, values in correct.items():
        folder = plan.folder(PlannedRun(name, 0))
        folder.mkdir(parents=True)
        np.savez(folder / "samples.npz", correct=values, nll=1 - values.astype(np.float32))
    found = {PlannedRun(name, 0): fabricated(float(values.mean())) for name, values in correct.items()}
    summary = summarise_runs(plan, found, [])
    better = summary["differences"]["ls"]["metrics"]["top_1"]
    half = 1.96 * np.sqrt(0.06 * 0.94 / 1000)
    assert better["interval"] == pytest.approx([0.06 - half, 0.06 + half], abs=0.15 * half)
    assert better["exceeds"] and better["seeds_needed"] is None
    assert not summary["differences"]["maxsup"]["metrics"]["top_1"]["exceeds"]
    assert summary["differences"]["ls"]["metrics"]["ece"]["interval"] is None
    text = to_markdown(plan, summary)
    assert "a bootstrap over validation samples" in text and "Seeds needed" not in text
    assert "no difference: +0.00 [" in text


def test_one_seed_has_intervals_of_calibration_and_rejection(tmp_path: Path, settings: list[str]) -> None:
    """Around the differences that the metrics themselves have, and as wide as resampling the arrays says."""
    plan = parse_plan(["--losses=ce,ls", "--seeds=0", f"--out={tmp_path}", *settings])
    random = np.random.default_rng(4)
    labels = torch.from_numpy(random.integers(0, 5, 801))
    outputs, found = {}, {}
    for name, scale in (("ce", 3.0), ("ls", 1.0)):
        logits = torch.from_numpy(random.normal(0, 1, (801, 5))).float()
        logits[torch.arange(801), labels] += 1.5
        outputs[name] = Collected(scale * logits, labels, None)
        folder = plan.folder(PlannedRun(name, 0))
        folder.mkdir(parents=True)
        write_sample_results(folder / "samples.npz", outputs[name])
        found[PlannedRun(name, 0)] = with_suites(fabricated(0.8), **suite_records(outputs[name]))
    summary = summarise_runs(plan, found, [])
    measured = summary["differences"]["ls"]["metrics"]
    _, half = split_halves(801, 1)

    def wanted(positions: torch.Tensor) -> dict[str, float]:
        ls, ce = (suite_values(one.logits[positions], labels[positions]) for one in (outputs["ls"], outputs["ce"]))
        return {key: ls[key] - ce[key] for key in ls}

    drawn = {"": [], "_half": []}
    for positions, key in ((torch.arange(801), ""), (half, "_half")):
        for _ in range(150):
            drawn[key].append(wanted(positions[random.integers(0, len(positions), len(positions))]))
    for key, (of, name) in {
        "ece": ("", "ece"),
        "ece_unscaled": ("_half", "ece"),
        "nll_unscaled": ("_half", "nll"),
        "brier": ("_half", "brier"),
        "aurc": ("", "probability"),
        "aurc_logit": ("", "logit"),
        "aurc_margin": ("", "margin"),
        "coverage_5": ("", "coverage"),
    }.items():
        low, high = measured[key]["interval"]
        exact = wanted(half if of else torch.arange(801))[name]
        assert low < exact < high, key
        # The spread of 150 draws is known to 6%, and that of other samples than these would be off by 40%.
        spread_of_draws = np.std([one[name] for one in drawn[of]], ddof=1)
        assert 0.78 < (high - low) / (2 * 1.96 * spread_of_draws) < 1.28, key
    assert measured["ece"]["exceeds"] and measured["brier"]["interval"] != measured["nll"]["interval"]
    assert measured["ece_scaled"]["interval"] is None


def suite_values(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    correct = (logits.argmax(dim=1) == labels).numpy()
    ranked = {name: selective(score, correct) for name, score in confidence_scores(logits).items()}
    plain = calibration(logits, labels)
    found = {"ece": plain["ece"], "nll": plain["nll"], "brier": plain["brier"]}
    found |= {name: one["aurc"] for name, one in ranked.items()}
    return {**found, "coverage": ranked["probability"]["coverage_at_risk"]["0.05"]}


def suite_records(outputs: Collected) -> dict[str, Any]:
    first, second = split_halves(len(outputs.labels), 1)
    before = calibration(outputs.logits[second], outputs.labels[second])
    fitted = {"data_set": "/d/val.beton", "samples": len(first), "split_seed": 1}
    record = {"temperature": 2.0, "fitted_on": fitted, "samples": len(second), "before": before, "after": before}
    scores = {
        name: selective(score, outputs.correct.numpy()) for name, score in confidence_scores(outputs.logits).items()
    }
    return {"calibration": record, "selective": {"scores": scores}}


def with_suites(measures: dict[str, Any], **suites: Any) -> dict[str, Any]:
    return {**measures, "suites": suites}


def fabricated_calibration(seed: int | None = 1) -> dict[str, Any]:
    fitted = {"data_set": "/d/val.beton", "samples": 400, "split_seed": seed}
    before, after = {"nll": 0.9, "ece": 0.06, "brier": 0.3}, {"nll": 0.7, "ece": 0.01, "brier": 0.25}
    return {"temperature": 1.5, "fitted_on": fitted, "samples": 600, "before": before, "after": after}


def test_suites_have_columns(tmp_path: Path, settings: list[str]) -> None:
    plan = parse_plan(["--losses=ce", "--seeds=0,1", "--suite=calibration,ood", f"--out={tmp_path}", *settings, *OOD])
    scores = {"probability": {"auroc": 0.8, "fpr_95": 0.5}, "logit": {"auroc": 0.7, "fpr_95": 0.6}}
    variants = {"sets": [], "mean": {"top_1": 0.55, "nll": 2.0, "ece": 0.1}, "real": None}
    suites = {"calibration": fabricated_calibration(), "ood": {"mean": scores}, "variants": variants}
    found = {PlannedRun("ce", seed): with_suites(fabricated(0.8), **suites) for seed in (0, 1)}
    text = to_markdown(plan, summarise_runs(plan, found, []))
    # Before and after of the same samples, and which these are.
    assert (
        "| temperature | NLL, unscaled | NLL, scaled | ECE, unscaled | ECE, scaled | Brier, unscaled | Brier," in text
    )
    assert "| ce | 2 | 1.500 ± 0.000 | 0.9000 ± 0.0000 | 0.7000 ± 0.0000 | 0.0600 ± 0.0000 | 0.0100 ± 0.0000 |" in text
    assert "Of 600 validation samples, without and with a temperature fitted to 400 of the validation set," in text
    opening = text.partition("## ")[0]
    assert "| NLL | ECE, unscaled | ECE, scaled |" in opening and "| 1.2500 | 0.0600 | 0.0100 |" in opening
    assert "| ECE |" in text.partition("## Validation")[2]
    assert "| ce | 2 | 80.00 ± 0.00 | 70.00 ± 0.00 | 50.00 ± 0.00 |" in text
    assert "| criterion | seeds | top-1, variants % | NLL, variants |" in text
    assert "| ce | 2 | 55.00 ± 0.00 | 2.0000 ± 0.0000 |" in text
    for suite in SUITES:
        assert any(metric.path[:2] == ("suites", suite) for metric in METRICS), suite
    other = with_suites(fabricated(0.8), calibration=fabricated_calibration(None))
    text = to_markdown(plan, summarise_runs(plan, {PlannedRun("ce", 0): other}, []))
    assert "a temperature fitted to 400 of `val.beton`; the tables of validation are of all" in text


def test_what_a_run_lacks_is_said(tmp_path: Path, settings: list[str]) -> None:
    """Of a value that one seed lacks there is no mean, and of no other criterion's is one taken away."""
    plan = parse_plan(["--losses=ce,ls", "--seeds=0,1", f"--out={tmp_path}", *settings])
    corrupted = {"mean": {"error": 0.4, "nll": 1.5, "ece": 0.1}, "mce": None}
    broken = {"mean": {"error": 0.4, "nll": None, "ece": 0.1}, "mce": None}
    few = {"groups": {"few": {"accuracy": None}}}
    found = {
        PlannedRun("ce", 0): with_suites(fabricated(0.8), corruptions=corrupted, groups=few),
        PlannedRun("ls", 0): with_suites(fabricated(0.8), corruptions=broken, groups=few),
        PlannedRun("ce", 1): with_suites(fabricated(0.8), corruptions=corrupted, groups=few),
        PlannedRun("ls", 1): with_suites(fabricated(0.8), corruptions=corrupted, groups=few),
    }
    summary = summarise_runs(plan, found, [])
    text = to_markdown(plan, summary)
    assert "**ls_seed0 has no finite value of** NLL, corrupted: its criterion has no mean there." in text
    assert "| ls | 2 | 40.00 ± 0.00 | – | 0.1000 ± 0.0000 |" in text
    assert "| ce | 2 | 40.00 ± 0.00 | 1.5000 ± 0.0000 | 0.1000 ± 0.0000 |" in text
    assert [record["metrics"] for record in summary["lacking"]] == [["corrupted_nll"]]  # no mCE, no few-shot class
    # Of an opening column one criterion may have none.
    broken["mean"] = {"error": None, "nll": 1.5, "ece": None}
    found[PlannedRun("ce", 1)] = fabricated(0.8)
    summary = summarise_runs(plan, found, [])
    text = to_markdown(plan, summary)
    opening = text.partition("## ")[0]
    assert "**ls_seed0 has no finite value of** error, corrupted %; ECE, corrupted: its" in opening
    assert "**ce_seed1 was not measured for** error, corrupted %; NLL, corrupted; ECE, corrupted: its" in opening
    found = {run: with_suites(fabricated(0.8), corruptions=broken) for run in found}
    text = to_markdown(plan, summarise_runs(plan, found, []))
    assert all(f"**{run.name} has no finite value of** error, corrupted %; ECE" in text for run in found)
    only = {**found, PlannedRun("ce", 0): with_suites(fabricated(0.8), corruptions=corrupted)}
    del only[PlannedRun("ce", 1)]
    columns = {one["title"]: one["cells"] for one in summarise_runs(plan, only, [])["qualities"]["columns"]}
    assert columns["error, corrupted %"] == {"ce": "40.00", "ls": "–"}


def test_suites_asked_for_later_are_measured(fake: Fake) -> None:
    assert running.run_all(fake.plan) == []
    later = dataclasses.replace(fake.plan, suites=SuiteOptions(("selective",)))
    assert not any(running.is_finished(later, run) for run in later.runs)
    path = fake.plan.folder(fake.plan.runs[0]) / "measures.json"
    options = {"selective": {}, "calibration": {"calibrate_on": "", "split_seed": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "suite_options": options}))
    assert running.is_finished(later, fake.plan.runs[0])
    other = dataclasses.replace(fake.plan, suites=SuiteOptions(("calibration",), split_seed=2))
    assert not running.is_finished(other, fake.plan.runs[0])


def test_metrics_on_the_training_set_are_of_what_was_drawn(
    small_run: Path, small_betons: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "some.txt").write_text("".join(f"{index}\n" for index in range(0, 96, 5)))
    word = f"--checkpoint={small_run / 'final.pt'}"
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    measure_main([word, f"--output={part}", f"--data.subset={tmp_path / 'some.txt'}"])
    measure_main([word, f"--output={whole}", f"--data.val_dataset={small_betons[0]}"])
    all_of_it, some = json.loads(whole.read_text()), json.loads(part.read_text())
    with np.load(tmp_path / "samples.npz") as samples:  # of the training set, the second time
        nll = samples["nll"]
    assert all_of_it["features"]["train"]["samples"] == 96 and some["features"]["train"]["samples"] == 20
    assert some["features"]["val"]["samples"] == some["samples"] == 50
    assert all_of_it["train"]["nll"] == pytest.approx(nll.mean(), rel=1e-4)
    assert some["train"]["nll"] == pytest.approx(nll[::5].mean(), rel=1e-4)


def test_what_is_measured_stays(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for later is added, and what a stop left is not done again."""
    ran: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            ran.append(name)
            return function(*arguments, **named)

        return counting

    for name in ("selective", "groups"):
        monkeypatch.setitem(SUITES, name, counted(name, SUITES[name]))
    monkeypatch.setattr(measuring, "_features", counted("features", measuring._features))
    checkpoint, file = tmp_path / "final.pt", tmp_path / "measures.json"
    shutil.copy(small_run / "final.pt", checkpoint)
    words = [f"--checkpoint={checkpoint}", f"--output={file}"]

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_features", stop)
        with pytest.raises(KeyboardInterrupt):
            measure_main([*words, "--suite=selective"])
    assert ran == ["selective"] and (tmp_path / "measures_suites.part.json").exists()
    measure_main([*words, "--suite=selective"])
    assert ran == ["selective", "features", "features"]
    assert not (tmp_path / "measures_suites.part.json").exists()
    first = json.loads(file.read_text())
    measure_main([*words, "--suite=groups"])
    assert ran[3:] == ["groups"]
    both = json.loads(file.read_text())
    assert list(both["suites"]) == ["selective", "groups"]
    assert both["suite_options"]["selective"] == {} and both["suite_options"]["groups"]["many_over"] == 100
    assert all(both[key] == first[key] for key in ("single", "features", "train", "samples", "loss", "seed"))
    assert is_measured(file, None, SuiteOptions(("selective",)))
    measure_main([*words, "--suite=groups", "--many-over=30"])
    assert ran[4:] == ["groups"]
    # Of other weights nothing holds.
    content = load_checkpoint(checkpoint)
    content["model"]["fc.bias"] += 1
    torch.save(content, checkpoint)
    measure_main([*words, "--suite=groups"])
    assert ran[5:] == ["groups", "features", "features"]
    assert list(json.loads(file.read_text())["suites"]) == ["groups"]


IMAGENET = TrainingClasses((1281,) * 1000)
CIFAR_10 = TrainingClasses(
    (5000,) * 10, ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)
CUB = TrainingClasses((30,) * 194 + (29,) * 6)
CARS = TrainingClasses((41,) * 88 + (42,) * 108)


def rows_of(monkeypatch: pytest.MonkeyPatch, plan: ComparisonPlan, arch: str, *sets: TrainingClasses) -> str:
    """compare.md of one run each of ce and ls as if they had been trained on the first, and probed on the second."""
    opened = [
        SimpleNamespace(labels=np.repeat(np.arange(len(one.counts)), one.counts), class_names=one.names) for one in sets
    ]
    for data_set, classes in zip(opened, sets, strict=True):
        data_set.num_classes = len(classes.counts)
    monkeypatch.setattr(report, "open_together", lambda *_: opened[:1])
    monkeypatch.setattr(report, "open_further", lambda *_: opened[1])
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, model=ModelConfig(arch=arch)))
    found = {PlannedRun(loss, 0): fabricated(0.8, 0.7 if plan.transfer else None) for loss in ("ce", "ls")}
    return to_markdown(plan, summarise_runs(plan, found, []))


def test_published_rows_stand_beside(tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ["--transfer-train=a", "--transfer-val=b"]
    plan = parse_plan(["--losses=ce,ls", "--seeds=0", f"--out={tmp_path}", *probe, *settings])
    text = rows_of(monkeypatch, plan, "resnet50", IMAGENET, CIFAR_10)
    assert "| ce, published (arXiv:2502.15798, 90 epochs) | | 76.44 |" in text
    assert "| ce, published (arXiv:2502.15798) | | 0.3114 | 0.3313 | 0.5212 | 0.5949 | 0.4025 | 0.4451 |" in text
    paper = "Published, arXiv:2502.15798 (https://arxiv.org/abs/2502.15798): ImageNet,"
    assert text.count(f"{paper} 90 epochs (these runs: 1).") == 1
    assert f"{paper} of a length not known here (these runs: 1).\n" in text
    transfer = text.partition("## Linear transfer")[2].partition("## ")[0]
    assert "| ls | one seed | 70.00 |\n| ls, published (arXiv:2502.15798) | | 90.14 |" in transfer
    assert "transfer to CIFAR-10, L2 penalty from 45 log-spaced values 1e-06 to 1e+05; a narrower grid gave" in transfer
    plan = dataclasses.replace(plan, transfer=None)
    tail = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
    text = rows_of(monkeypatch, plan, "cifar_resnet32", TrainingClasses(tuple(tail)))
    assert "| ls, published (MaxSup repository, LT, 200 epochs) | | 80.50 |" in text
    assert "/Maximum-Suppression-Regularization/tree/main/LT): CIFAR-10-LT, imbalance 50, 200 epochs (these" in text
    assert "; a normalised, de-confounded classifier (arXiv:2009.12991), which these runs do not have.\n" in text
    assert "ce, published" not in text
    text = rows_of(monkeypatch, plan, "resnet50", CUB)
    assert "| ls, published (MaxSup repository, README) | | 81.96 |" in text
    assert ", published (" not in rows_of(monkeypatch, plan, "resnet50", TrainingClasses((500,) * 200))


def test_a_subset_is_not_the_published_data_set(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What data.subset leaves out is not trained on."""
    plan = parse_plan(["--losses=ce,ls", "--seeds=0", f"--out={tmp_path}", *settings])
    assert "90.27" in rows_of(monkeypatch, plan, "resnet50", CARS)
    subset = tmp_path / "subset.txt"
    subset.write_text("\n".join(map(str, range(5000))))
    plan = dataclasses.replace(
        plan, config=dataclasses.replace(plan.config, data=dataclasses.replace(plan.config.data, subset=str(subset)))
    )
    assert ", published (" not in rows_of(monkeypatch, plan, "resnet50", CARS)


def values_of(rows: list[PublishedRow]) -> dict[str, float]:
    return {key: value for row in rows for key, value in row.values.items()}


@pytest.mark.parametrize(
    ("arch", "epochs", "loss", "trained", "expected", "length"),
    [
        ("resnet18", 16, "ls", IMAGENET, {"top_1": 0.6954}, 200),
        ("resnet101", 200, "logit_penalty", IMAGENET, {"top_1": 0.7720}, 200),
        ("mobilenet_v2", 200, "zipf", IMAGENET, {"top_1": 0.7116}, 200),
        ("cifar_resnet18", 200, "ls", TrainingClasses((500,) * 100), {"top_1": 0.7705}, 200),
        ("cifar_resnet50", 30, "ols", TrainingClasses((500,) * 100), {"top_1": 0.7879}, 200),
        ("resnet50", 100, "maxsup", CUB, {"top_1": 0.8253}, None),
        ("resnet50", 100, "ce", CARS, {"top_1": 0.9027}, None),
        ("resnet50", 100, "ols", CARS, {"top_1": 0.9196}, None),
        ("cifar_resnet50", 200, "ls", CIFAR_10, {"corrupted": 0.3951}, 200),
        ("cifar_resnet50", 200, "ls", TrainingClasses((5000,) * 10), {"corrupted": 0.3951}, 200),
    ],
)
def test_published_values(
    arch: str, epochs: int, loss: str, trained: TrainingClasses, expected: dict[str, float], length: int | None
) -> None:
    (row,) = published(arch, epochs, loss, trained)
    assert row.values == expected and row.epochs == length


@pytest.mark.parametrize(("epochs", "length", "top_1"), [(16, 90, 0.7708), (90, 90, 0.7708), (150, 200, 0.7769)])
def test_of_two_published_lengths_the_nearest_is_shown(epochs: int, length: int, top_1: float) -> None:
    row, features = published("resnet50", epochs, "maxsup", IMAGENET)
    assert row.values == {"top_1": top_1} and row.epochs == length
    assert features.values["d_within_val"] == 0.2998 and features.epochs is None


def test_the_ablation_is_told_apart() -> None:
    arch = "deit_small_patch16_224"
    (row,) = published(arch, 300, "regularization_only", IMAGENET)
    assert row.values == {"top_1": 0.7598} and "constant α, in which ce has 74.21, ls 75.91" in row.caveat
    (row,) = published(arch, 300, "ls", IMAGENET)
    assert row.values == {"top_1": 0.7608} and "constant" not in row.caveat
    assert not published(arch, 300, "logit_penalty", IMAGENET)


@pytest.mark.parametrize("imbalance", [50, 100])
def test_long_tails_are_those_that_are_written_here(imbalance: int) -> None:
    labels = np.repeat(np.arange(10), 5000)
    kept = np.bincount(labels[long_tail(labels, 10, imbalance, seed=0)])
    expected = {50: {"top_1": 0.814}, 100: {"top_1": 0.764}}[imbalance]
    assert values_of(published("cifar_resnet32", 200, "maxsup", TrainingClasses(tuple(kept)))) == expected
    kept[4] += 5
    assert not published("cifar_resnet32", 200, "maxsup", TrainingClasses(tuple(kept)))


@pytest.mark.parametrize(
    ("arch", "loss", "trained"),
    [
        ("resnet50", "maxsup", TrainingClasses((500,) * 200)),  # Tiny-ImageNet
        ("resnet50", "maxsup", TrainingClasses((12,) * 1000)),
        ("resnet50", "maxsup", TrainingClasses((40,) * 196)),
        ("resnet18", "ls", CUB),
        ("resnet50", "logit_penalty", CARS),
        ("cifar_resnet50", "maxsup", TrainingClasses((5000,) * 10, tuple(f"digit{i}" for i in range(10)))),
        ("cifar_resnet50", "maxsup", TrainingClasses((4500,) * 10)),
        ("cifar_resnet50", "ls", TrainingClasses((500,) * 100, tuple(map(str, range(100))))),
        ("cifar_resnet32", "focal", TrainingClasses((5000,) * 9 + (100,))),
        ("cifar_resnet32", "maxsup", TrainingClasses((5000,) * 10)),
        ("cifar_resnet32", "maxsup", TrainingClasses((5000, 0))),
        ("cifar_resnet20", "ls", CIFAR_10),
        ("resnet50", "maxsup", TrainingClasses(())),
    ],
)
def test_other_settings_have_no_published_row(arch: str, loss: str, trained: TrainingClasses) -> None:
    assert not published(arch, 200, loss, trained)


def test_published_transfer_needs_the_probes_data_set() -> None:
    def transfer(probed: TrainingClasses | None) -> float | None:
        return values_of(published("resnet50", 200, "ls", IMAGENET, probed)).get("transfer")

    assert transfer(CIFAR_10) == 0.9014 and transfer(TrainingClasses((500,) * 100)) == 0.7128
    assert transfer(TrainingClasses((500,) * 10)) is None and transfer(None) is None
    assert transfer(TrainingClasses((5000,) * 10, tuple(f"digit{i}" for i in range(10)))) is None


def test_spread() -> None:
    assert spread([1.0, 2.0, 4.0])["sd"] == statistics.stdev([1, 2, 4])
    assert spread([3.0]) == {"values": [3.0], "mean": 3.0, "sd": None}


def by_hand(checkpoint: Path) -> tuple[float, float, float, float]:
    """(top-1, NLL, d_within, R²) on the validation set, in float64 by pairs of samples, without our evaluation code."""
    images = crops_of_photographs(50, 32, 32, seed=2)
    labels = np.arange(50) % 4
    for image, label in zip(images, labels, strict=True):
        image[:, :, label % 3] = image[:, :, label % 3] // 2 + (64 if label == 3 else 127)
    state = torch.load(checkpoint, weights_only=True)
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4)
    model.load_state_dict(state["model"])
    mean, std = (torch.tensor(state["normalisation"][key]) for key in ("mean", "std"))
    x = ((torch.from_numpy(np.stack(images)).double() / 255 - mean) / std).permute(0, 3, 1, 2)
    seen: list[torch.Tensor] = []
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model.double().eval()(x)
    nll = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))
    unit = (seen[0] / seen[0].norm(dim=1, keepdim=True)).numpy()
    distance = 1 - unit @ unit.T
    blocks = [[distance[np.ix_(labels == a, labels == b)].mean() for b in range(4)] for a in range(4)]
    d_within, d_total = float(np.trace(blocks) / 4), float(np.mean(blocks))
    return float((logits.argmax(1).numpy() == labels).mean()), nll, d_within, 1 - d_within / d_total


def check_transfer(checkpoint: Path, betons: tuple[Path, Path], folder: Path) -> None:
    """The linear transfer that is measured is the probe's on the features that a hook sees."""
    words = [f"--checkpoint={checkpoint}", f"--output={folder / 'm.json'}"]
    words += [f"--transfer-train={betons[0]}", f"--transfer-val={betons[1]}"]
    request = parse_measure_request(words)
    found = measure(request, Process(0, 1, 0, 1, torch.device("cpu")), transfer=transfer_files(request.options))[
        "transfer"
    ]
    assert found["train_samples"] == 96 and found["test_samples"] == 50 and found["num_classes"] == 4
    assert len(found["curve"]) == 45 and 0.5 < found["accuracy"] <= 1
    write_json(folder / "m.json", {"format": 1, "transfer": found})
    assert is_measured(folder / "m.json", betons)
    assert not is_measured(folder / "m.json", (betons[1], betons[0]))


def test_script_end_to_end(
    tmp_path: Path,
    settings: list[str],
    small_betons: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """Two criteria, two seeds: one run fails, then the whole command again keeps the others and mends it."""
    out = tmp_path / "out"
    command = ["--losses=ce,maxsup", "--seeds=0,1", f"--out={out}", *settings]
    command += ["--suite=selective,ood", "--knn-k=5", "--ood-data", str(small_betons[0])]
    obstacle = out / "runs" / "maxsup_seed0"
    plan = parse_plan(command)
    claim_folder(plan)
    # Half of it has been done before: in this process, for the start of one takes longer than its run.
    for run in (PlannedRun(name, 1) for name in plan.losses):
        train_main(train_command(plan, run)[4:])
        measure_main(measure_command(plan, run)[4:])
    obstacle.touch()  # a file where the run's folder is to be
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_here("compare.py", *command)
    said = capfd.readouterr()
    assert ended.value.code == 2, said.out + said.err
    assert "4 runs, 2 finished before; 2 to go" in said.out and "maxsup_seed0: failed to train" in said.out
    assert "1 of 4 runs failed (maxsup_seed0)" in said.err and len(said.err.splitlines()) == 1
    assert "**maxsup_seed0 failed** to train" in (out / "compare.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/final.pt")}
    assert len(kept) == 3

    obstacle.unlink()
    run_here("compare.py", *command)
    assert "4 runs, 3 finished before; 1 to go" in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())

    report = json.loads((out / "compare.json").read_text())
    assert report["failed"] == report["missing"] == []
    assert {name: row["seeds"] for name, row in report["criteria"].items()} == {"ce": [0, 1], "maxsup": [0, 1]}
    for run, found in read_measures(plan).items():
        folder = plan.folder(run)
        config = parse_request([f"--checkpoint={folder / 'final.pt'}"]).config
        assert (config.loss.name, config.training.seed) == (run.loss, run.seed)
        logged = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        assert found["single"]["top_1"] == logged["top_1"]
        assert found["flip_averaged"]["nll"] == pytest.approx(logged["flip_averaged"]["nll"], rel=1e-5)
        top_1, nll, d_within, r_squared = by_hand(folder / "final.pt")
        assert found["single"]["top_1"] == pytest.approx(top_1)
        assert found["single"]["nll"] == pytest.approx(nll, rel=1e-4)
        assert found["features"]["val"]["d_within"] == pytest.approx(d_within, abs=1e-6)
        assert found["features"]["val"]["r_squared"] == pytest.approx(r_squared, abs=1e-5)
        assert found["features"]["train"]["samples"] == 96
        with np.load(folder / "samples.npz") as samples:
            assert samples["correct"].mean() == pytest.approx(top_1)
            assert samples["nll"].mean() == pytest.approx(nll, rel=1e-4)
        assert found["suites"]["selective"]["risk"] == pytest.approx(1 - top_1)
        assert set(found["suites"]["ood"]["mean"]) == {"probability", "logit", "energy", "knn"}
        assert found["transfer"] is None and math.isfinite(found["train"]["nll"])
    assert (out / "compare.png").stat().st_size > 10_000 and (out / "compare.svg").exists()

    page = make_page([str(out)])
    opening, _, rest = page.partition("<h2")[2].partition("</table>")
    assert all(text in opening for text in ("criterion", "AURC", "AUROC", "#selective-prediction", "maxsup"))
    assert 'id="selective-prediction"' in rest and 'id="out-of-distribution-detection"' in rest

    check_transfer(plan.folder(PlannedRun("ce", 0)) / "final.pt", small_betons, tmp_path)
    run_here("compare.py", *command, "--seeds=0,1,2", "--dry-run")
    printed = capfd.readouterr().out
    assert "ce_seed0                         finished" in printed and "maxsup_seed2" in printed
    assert "mean of 4 finished runs" in printed and "for 2 runs" in printed
