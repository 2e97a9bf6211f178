"""The doctor: known answers for its judgement, and the command itself on small data sets."""

import dataclasses
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_train.cli.doctor import parse_doctor_options
from ffcv_train.cli.main import run
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ResolutionConfig, RunConfig
from ffcv_train.data import open as opening
from ffcv_train.doctor import examination, residency, timing
from ffcv_train.doctor.balance import (
    Circumstances,
    Forecast,
    Speed,
    Stage,
    advise,
    bottleneck,
    epochs_in_words,
    forecast,
    stages,
)
from ffcv_train.doctor.report import print_report
from ffcv_train.doctor.residency import cached_share, resident_pages
from ffcv_train.doctor.timing import Timing, speed, time_loader, times
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Trainer

ALONE = Process(0, 1, 0, 1, torch.device("cpu"))
Betons = tuple[Path, Path]
GIB = 1 << 30


def judge(loader: float, per_core: float, step: float, cores: float, step_core_seconds: float = 0.0) -> Forecast:
    """One epoch of 1000 images at 160 px."""
    return forecast(Stage(160, 0, 1), Speed(loader, 1 / per_core), Speed(step, step_core_seconds), cores, 1000)


def test_stages_group_the_schedule() -> None:
    # FFCV's 16 epochs: 160 px up to epoch 11, 176 rounds to 160 (even multiple of 32: 5.5 -> 6 -> 192) at 12.
    config = ResolutionConfig(min_res=160, max_res=192, start_ramp=11, end_ramp=13)
    assert stages(config, 16) == [Stage(160, 0, 12), Stage(192, 12, 4)]
    assert stages(ResolutionConfig(min_res=64, max_res=64), 3) == [Stage(64, 0, 3)]
    steps = ResolutionConfig(min_res=24, max_res=32, start_ramp=4, end_ramp=10, step=4)
    found = stages(steps, 36)
    assert [s.resolution for s in found] == [24, 28, 32]
    assert sum(s.epochs for s in found) == 36
    assert [s.first_epoch for s in found] == [0, found[0].epochs, found[0].epochs + found[1].epochs]
    assert [epochs_in_words(s) for s in (Stage(24, 0, 1), Stage(24, 3, 5))] == ["1", "4–8"]


def test_a_device_of_its_own_waits_for_the_loader() -> None:
    # 8 cores of 500 images/s feed a GPU of 6000 images/s, which 12 would feed; launching takes no core here.
    found = judge(4000, 500, 6000, cores=8)
    assert (found.images_per_s, found.bottleneck, found.cores_to_balance) == (4000, "loader", 12)
    assert found.epoch_seconds == pytest.approx(0.25)
    assert found.seconds_lost_to_loader == pytest.approx(0.25 - 1000 / 6000)
    # Launching takes one core at full speed.
    assert judge(4000, 500, 6000, cores=8, step_core_seconds=1 / 6000).cores_to_balance == 13


def test_a_fast_loader_waits_for_the_device() -> None:
    found = judge(8000, 500, 3000, cores=16)
    assert (found.images_per_s, found.bottleneck, found.cores_to_balance) == (3000, "step", 6)
    assert found.seconds_lost_to_loader == 0


def test_a_step_on_the_cpu_shares_its_cores() -> None:
    # Each alone uses both cores: 1/1000 s and 1/250 s an image, 1/200 s together.
    found = judge(1000, 500, 250, cores=2, step_core_seconds=2 / 250)
    assert found.images_per_s == pytest.approx(200)
    assert (found.bottleneck, found.cores_to_balance) == ("step", 3)
    assert found.seconds_lost_to_loader == pytest.approx(5 - 4)
    # Two such processes are no faster on the same cores, loading costs no more.
    twice = judge(1000, 500, 500, cores=2, step_core_seconds=2 / 250)
    assert (twice.step.images_per_s, twice.images_per_s) == pytest.approx((250, 200))
    assert twice.seconds_lost_to_loader == pytest.approx(5 - 4)
    # With one thread for the step, the second core loads beside it.
    assert judge(1000, 500, 125, cores=2, step_core_seconds=1 / 125).images_per_s == 125


def test_speeds_within_five_percent_are_even() -> None:
    assert [bottleneck(loader, 1000) for loader in (949, 951, 1000, 1050, 1060)] == [
        "loader",
        "even",
        "even",
        "even",
        "step",
    ]


FACTS = Circumstances(
    device_type="cuda",
    cores=8,
    workers=8,
    in_memory=True,
    file_bytes=100 * GIB,
    raw_bytes=700 * GIB,
    available_bytes=200 * GIB,
    jpeg_share=1.0,
    amp="bf16",
    channels_last=True,
    compile=False,
)
SLOW_LOADER, SLOW_STEP = judge(4000, 500, 6000, 8), judge(8000, 1000, 3000, 8)


@pytest.mark.parametrize(
    ("changes", "forecasts", "wanted"),
    [
        ({"available_bytes": 50 * GIB}, [SLOW_LOADER], ["100.0 GiB", "50.0 GiB", "--data.in_memory=0"]),
        ({}, [SLOW_LOADER], ["loader is the bottleneck throughout", "33%", "balance takes 12 cores, there are 8"]),
        ({}, [SLOW_LOADER], ["use more cores or fewer pixels"]),
        ({"available_bytes": 500 * GIB}, [SLOW_LOADER], ["write_mode=proportion", "400.0 GiB"]),
        ({"available_bytes": 800 * GIB}, [SLOW_LOADER], ["write_mode=raw", "700.0 GiB"]),
        ({"jpeg_share": 0.0, "available_bytes": 800 * GIB}, [SLOW_LOADER], ["use more cores"]),
        ({"workers": 4}, [SLOW_LOADER], ["drop --data.num_workers"]),
        ({}, [judge(1000, 500, 6000, 8)], ["2.0 of 8 cores busy", "storage"]),
        ({}, [SLOW_STEP], ["step is the bottleneck throughout", "gain little", "--model.compile=1"]),
        ({"compile": True}, [SLOW_STEP], ["larger --training.batch_size"]),
        ({"amp": "off", "channels_last": False}, [SLOW_STEP], ["channels_last=1 and --training.amp=bf16 and"]),
        ({"device_type": "cpu"}, [judge(1000, 500, 250, 2, 2 / 250)], ["loading takes 20%", "train on a GPU"]),
        ({}, [judge(1000, 100, 1000, 20)], ["equally fast"]),
    ],
)
def test_advice(changes: dict[str, Any], forecasts: list[Forecast], wanted: list[str]) -> None:
    text = advise(dataclasses.replace(FACTS, **changes), forecasts)
    assert all(part in text for part in wanted), text
    assert text.endswith(".") and ". " not in text and "\n" not in text


def test_advice_names_the_epochs() -> None:
    early = dataclasses.replace(SLOW_LOADER, stage=Stage(160, 0, 12))
    late = dataclasses.replace(SLOW_STEP, stage=Stage(192, 12, 4))
    assert "loader is the bottleneck in epochs 1–12 " in advise(FACTS, [early, late])
    # 12 epochs of 1/4 s of which a third is lost, 4 of 1/3 s.
    assert "costs 23% of the time" in advise(FACTS, [early, late])


class FakeLoader:
    """Epochs of `count` batches of ten images by a clock of its own: one costs a second, the first one five."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.now, self.seen = count, 0.0, []
        monkeypatch.setattr(timing, "_clocks", lambda: (self.now, self.now / 2))

    def __len__(self) -> int:
        return self.count

    def set_resolution(self, resolution: int) -> None:
        self.seen.append(resolution)

    def set_epoch(self, epoch: int) -> None:
        self.seen.append(epoch)

    def epoch(self) -> Iterator[SimpleNamespace]:
        for number in range(self.count):
            self.now += 5 if number == 0 else 1
            yield SimpleNamespace(labels=torch.zeros(10))


def test_a_part_of_an_epoch_train_set_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = FakeLoader(100, monkeypatch)
    # The eighth batch comes after 12 seconds: seven more than the first, in seven seconds.
    assert time_loader(fake, 64, 12.0, epoch=3) == Timing(70, 7.0, 3.5)
    assert fake.seen == [64, 3]


def test_short_epochs_count_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = FakeLoader(4, monkeypatch)
    assert time_loader(fake, 64, 12.0, epoch=0) == Timing(80, 16.0, 8.0)
    assert fake.seen == [64, 0, 1]
    assert time_loader(FakeLoader(1, monkeypatch), 64, 0.0, epoch=0) == Timing(10, 5.0, 2.5)  # type: ignore[arg-type]


def test_speed_is_the_median_round() -> None:
    found = speed([Timing(100, 1.0, 2.0), Timing(300, 1.0, 3.0), Timing(100, 10.0, 1.0)])
    assert found == Speed(100.0, 0.01)
    assert (found.per_core, found.busy_cores) == (100.0, 1.0)
    assert times(found, 8) == Speed(800.0, 0.01)


def test_cached_share_counts_pages_that_hold_samples() -> None:
    resident = np.array([1, 1, 0, 1, 0, 1], bool)
    ptrs, sizes = np.array([150, 210, 400]), np.array([50, 100, 1])  # pages 1; 2 and 3; 4
    assert cached_share(resident, ptrs, sizes, page_size=100) == 0.5
    # To the last byte of page 3, and not on page 4.
    assert cached_share(resident, np.array([300]), np.array([100]), page_size=100) == 1
    generator = np.random.default_rng(0)
    resident = generator.random(500) < 0.3
    ptrs, sizes = generator.integers(0, 40_000, 60), generator.integers(1, 9_000, 60)
    pages = {page for p, s in zip(ptrs, sizes, strict=True) for page in {byte // 100 for byte in range(p, p + s)}}
    expected = np.mean([resident[page] for page in pages])
    assert cached_share(resident, ptrs, sizes, page_size=100) == pytest.approx(expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore's answer is defined on Linux only")
def test_resident_pages_are_those_read(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    file = tmp_path / "file"
    file.write_bytes(os.urandom(40 * page + 5))
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        assert (found := resident_pages(file)) is not None and len(found) == 41 and found.all()
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        found = resident_pages(file)
        assert found is not None
        if found.any():
            pytest.skip("this file system keeps its files in memory")
        for number in (3, 17, 40):
            os.pread(handle, 1, number * page)
        found = resident_pages(file)
        assert found is not None
        assert list(np.flatnonzero(found)) == [3, 17, 40]
        if shutil.which("fincore"):
            command = ["fincore", "--noheadings", "--output", "PAGES", str(file)]
            assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == 3
    finally:
        os.close(handle)


def test_a_system_that_does_not_say_is_believed(small_betons: Betons, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small_betons[0]
    with monkeypatch.context() as patch:
        patch.setattr(residency, "_mincore", lambda mapped: np.ones(1, bool))  # answers "all" to everything
        assert resident_pages(file) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        patch.setattr(os, "geteuid", lambda: -1)
        assert resident_pages(file) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resident_pages(file) is None


def options(train: Path | str, *more: str) -> list[str]:
    return [
        f"--data.train_dataset={train}",
        "--model.arch=cifar_resnet20",
        "--resolution.min_res=24",
        "--resolution.max_res=32",
        "--resolution.end_ramp=1",
        "--resolution.step=8",
        "--lr.lr_peak_epoch=1",
        "--training.epochs=3",
        "--training.batch_size=16",
        "--training.device=cpu",
        "--training.amp=off",
        "--validation.resolution=32",
        *more,
    ]


def run_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
    run("doctor")


def test_command(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_command(options(small_betons[0], "--json=doctor.json", "--seconds=0.3", "--data.num_workers=1"), monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert [(s["resolution"], s["first_epoch"], s["epochs"]) for s in report["stages"]] == [(24, 0, 1), (32, 1, 2)]
    for stage in report["stages"]:
        together = min(stage["loader_images_per_s"], stage["step_images_per_s"])
        assert 0 < stage["images_per_s"] <= together
        assert stage["bottleneck"] in ("loader", "step", "even")
        assert stage["epoch_seconds"] == pytest.approx(96 / stage["images_per_s"])
        assert len(stage["loader_rounds"]) == len(stage["step_rounds_of_one_device"]) == timing.ROUNDS
        # One thread decodes beside the one that takes the batches, one computes.
        assert 0 < stage["loader_busy_cores"] < 2.1 and 0 < stage["step_busy_cores"] < 1.5
        assert stage["loader_images_per_s_per_core"] * stage["loader_busy_cores"] == pytest.approx(
            stage["loader_images_per_s"]
        )
    # 1.8 times, but for what other programs take of a third of a second.
    assert report["stages"][0]["step_images_per_s"] > 0.6 * report["stages"][1]["step_images_per_s"]
    expected = sum(s["epochs"] * s["epoch_seconds"] for s in report["stages"])
    assert report["training_seconds"] == pytest.approx(expected)
    assert report["run"]["steps_per_epoch"] == 6
    data = report["data_set"]
    assert (data["samples"], data["jpeg_share"], data["raw_bytes"]) == (96, 0.0, 96 * 32 * 32 * 3)
    assert (data["file_bytes"], data["fits"]) == (small_betons[0].stat().st_size, True)
    assert data["cached_share"] in (None, 1.0)  # the file was just written and read
    captured = capsys.readouterr()
    text = captured.out
    assert max(map(len, text.splitlines())) <= max(80, len(data["path"]) + 20)
    assert "…" not in text
    for part in ("cifar_resnet20, 4 classes", "24       1", "32     2–3", "1 decoding thread"):
        assert part in text
    assert " ".join(report["advice"].split()) in " ".join(text.split())


def test_several_devices_share_the_cores(small_betons: Betons, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--devices=3", "--seconds=0.05", "--training.global_batch_size=24", "--data.num_workers=2")
    report = examination.examine(
        parse_doctor_options(options(small_betons[0], *more, "--training.epochs=1", "--data.in_memory=0")), ALONE
    )
    assert report["run"]["batch_per_device"] == 8
    assert (report["run"]["global_batch"], report["run"]["steps_per_epoch"]) == (24, 4)
    assert (report["machine"]["devices"], report["machine"]["loader_threads"]) == (3, 6)
    stage = report["stages"][0]
    # Three processes ask for three cores, and get those that there are.
    assert 0 < stage["step_images_per_s"] <= 3.001 * sorted(stage["step_rounds_of_one_device"])[1]
    assert stage["step_busy_cores"] <= report["machine"]["cores"] + 0.001
    assert report["data_set"]["measured_in_memory"] is False
    print_report(report)
    text = " ".join(capsys.readouterr().out.split())
    assert "batch 8 × 3 devices" in text and "shared by 3 processes" in text and "pages of at most" in text


def test_a_file_larger_than_memory_is_measured_from_pages(
    small_betons: Betons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (examination, opening):
        monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    report = examination.examine(parse_doctor_options(options(small_betons[0], "--seconds=0.05")), ALONE)
    assert not report["data_set"]["fits"] and not report["data_set"]["measured_in_memory"]
    assert "--data.in_memory=0" in report["advice"]
    print_report(report)
    assert "measured with --data.in_memory=0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "more",
    [
        ["--data.train_dataset="],
        ["--data.train_dataset=nowhere.beton"],
        ["--data.train_dataset=nowhere.beton", "--resolution.max_res=16"],
        ["--data.val_dataset=nowhere.beton"],
        ["--model.arch=resnet51"],
        ["--model.num_classes=2"],
        ["--loss.name=maxsub"],
        ["--training.batch_size=97"],
        ["--training.accumulate=7"],
        ["--training.global_batch_size=7", "--training.accumulate=2"],
        ["--resolution.max_res=16"],
        ["--lr.lr_peak_epoch=4"],
        ["--data.crop_scale=0.5,0.1"],
        ["--training.epoch=3"],
        ["--training.epochs=x"],
        ["--config-file=nowhere.yaml"],
    ],
)
def test_refuses_what_the_trainer_refuses(small_betons: Betons, more: list[str]) -> None:
    val = [] if any("val_dataset" in word for word in more) else [f"--data.val_dataset={small_betons[1]}"]
    with pytest.raises(UserError) as wanted:
        Trainer(load_config(RunConfig, [*options(small_betons[0]), *val, *more]), ALONE)
    with pytest.raises(UserError) as found:
        examination.examine(parse_doctor_options([*options(small_betons[0]), *val, *more]), ALONE)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seconds=0"], "--seconds must be a number above 0, not '0'"),
        (["--seconds=nan"], "--seconds must be a number above 0"),
        (["--devices=-1"], "--devices must be a whole number"),
        (["--json=."], "is a folder; name a file"),
        (["--json=nowhere/doctor.json"], "folder that does not exist; create nowhere"),
        (["--devices=7"], "fewer than one global batch of 112 on 7 devices; lower --training.batch_size"),
        (["--jsn=x"], "unknown key in the command line: '--jsn'"),
        (["--data.train_datset=x"], "did you mean 'data.train_dataset'?"),
    ],
)
def test_refuses_what_does_not_fit(small_betons: Betons, more: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        examination.examine(parse_doctor_options(options(small_betons[0], *more)), ALONE)
    assert message in str(error.value)


def test_refuses_torchrun(small_betons: Betons) -> None:
    with pytest.raises(UserError, match="start it without torchrun, with --devices=2"):
        examination.examine(parse_doctor_options(options(small_betons[0])), Process(0, 2, 0, 2, torch.device("cpu")))


def test_an_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        run_command(options("nowhere.beton"), monkeypatch)
    assert status.value.code == 2
    assert capsys.readouterr().err.startswith("error: the data set nowhere.beton does not exist; ")
    assert not list(tmp_path.iterdir())
