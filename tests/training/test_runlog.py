"""The run's folder: strict JSON, one line per epoch also after a resume, TensorBoard, progress."""

import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import ffcv_train
from ffcv_train.system import environment, progress
from ffcv_train.system.environment import describe_environment, git_revision, versions
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import to_plain, write_json
from ffcv_train.system.progress import ProgressLine, duration
from ffcv_train.training import runlog
from ffcv_train.training.runlog import RunLog, epoch_summary
from tests.support.photographs import ROOT


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 2.0 - epoch / 10, "top_1": 0.5 + epoch / 100, "lr": 0.1, **more}


def read(folder: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(folder: Path, name: str) -> dict[int, float]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars(name)}


def test_a_line_per_epoch_and_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog.open(tmp_path, "run") as log:
        log.epoch(record(0, alpha=torch.tensor(0.25), resolution=np.int64(160), flip_averaged={"top_1": 0.75}))
        log.epoch(record(1, nll=math.nan, ece=math.inf, path=tmp_path))
        assert len(read(tmp_path / "run")) == 2  # on the disk before the run ends
    first, second = read(tmp_path / "run")
    assert first == record(0, alpha=0.25, resolution=160, flip_averaged={"top_1": 0.75})
    assert (second["nll"], second["ece"], second["path"]) == (None, None, str(tmp_path))
    assert events(tmp_path / "run", "top_1") == pytest.approx({0: 0.5, 1: 0.51})
    assert events(tmp_path / "run", "flip_averaged/top_1") == {0: 0.75}
    assert events(tmp_path / "run", "alpha") == {0: 0.25}
    printed = capsys.readouterr().out
    assert "epoch 1  loss 2.0000  top-1 50.00%  side 160 px  lr 0.1" in printed
    assert "NLL not finite" in printed


def test_a_resumed_run_has_every_epoch_once(tmp_path: Path) -> None:
    with RunLog.open(tmp_path, "run") as log:
        for epoch in range(4):
            log.epoch(record(epoch, note="first"))
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"epoch": 4, "train_lo')  # a crash in the middle of a line
    with RunLog.open(tmp_path, "run", resumed_epoch=2) as log:
        assert [line["epoch"] for line in read(tmp_path / "run")] == [0, 1]
        log.epoch(record(2, note="second"))
        assert events(tmp_path / "run", "top_1") == pytest.approx({0: 0.5, 1: 0.51, 2: 0.52})
        log.epoch(record(3, note="second", top_1=0.9))
    found = read(tmp_path / "run")
    assert [line["epoch"] for line in found] == [0, 1, 2, 3]
    assert [line["note"] for line in found] == ["first", "first", "second", "second"]
    assert events(tmp_path / "run", "top_1") == pytest.approx({0: 0.5, 1: 0.51, 2: 0.52, 3: 0.9})


def test_a_complete_line_without_its_newline_survives_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}')
    with RunLog.open(tmp_path, "run", resumed_epoch=2, tensorboard=False) as log:
        log.epoch(record(2))
    assert [line["epoch"] for line in read(folder)] == [0, 1, 2]


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    with RunLog.open(tmp_path, "run", tensorboard=False) as log:
        log.params({})
    with RunLog.open(tmp_path, "run", tensorboard=False) as log:  # nothing was logged yet
        log.epoch(record(0))
    with pytest.raises(UserError, match=r"no last\.pt to continue it from.*logging\.run"):
        RunLog.open(tmp_path, "run")
    (tmp_path / "run" / "last.pt").touch()
    with pytest.raises(UserError, match=r"already holds a run's log.*resume=auto.*logging\.run"):
        RunLog.open(tmp_path, "run")
    assert len(read(tmp_path / "run")) == 1


def test_a_foreign_log_is_not_touched(tmp_path: Path) -> None:
    text = '{"epoch": 0}\nnot ours\n{"epoch": 1}\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match="line 2"):
        RunLog.open(tmp_path, "run", resumed_epoch=1)
    assert (tmp_path / "run" / "log.jsonl").read_text() == text


def test_params_of_a_continued_run_are_kept(tmp_path: Path) -> None:
    for process in range(3):
        with RunLog.open(tmp_path, "run", tensorboard=False, resumed_epoch=0) as log:
            log.params({"process": process, "batch": {"global": 8}, "tuple": (1, 2)})
    found = {name: json.loads((tmp_path / "run" / name).read_text()) for name in ("params.json", "params.1.json")}
    assert found["params.json"] == {"process": 2, "batch": {"global": 8}, "tuple": [1, 2]}
    assert found["params.1.json"]["process"] == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "log.jsonl",
        "params.1.json",
        "params.2.json",
        "params.json",
    ]


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog.open(tmp_path / "runs", "run", enabled=False) as log:
        log.params({})
        log.epoch(record(0))
        log.progress(0, 1, 1, 1, images_per_s=1.0)
        log.message("hello")
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out == ""


def test_without_tensorboard(tmp_path: Path) -> None:
    with RunLog.open(tmp_path, "run", tensorboard=False) as log:
        log.epoch(record(0))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_tensorboard_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv_train.training.events", None)
    with pytest.raises(UserError, match=r"logging\.tensorboard=0"):
        RunLog.open(tmp_path, "run")


def fill_after(records: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's file meets a full disk after so many records."""
    write, done = RecordWriter.write, []

    def fill(self: RecordWriter, data: bytes) -> None:
        if len(done) >= records:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)
        done.append(data)

    monkeypatch.setattr(RecordWriter, "write", fill)


@pytest.mark.parametrize("records", [1, 2, 4])
def test_a_full_disk_under_tensorboard_alone_costs_its_events_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], records: int
) -> None:
    fill_after(records, monkeypatch)
    with RunLog.open(tmp_path, "run") as log:
        for epoch in range(4):
            log.epoch(record(epoch))
    assert [line["epoch"] for line in read(tmp_path / "run")] == [0, 1, 2, 3]
    note = f"note: cannot write TensorBoard's events in {tmp_path / 'run'}: No space left on device; the run goes on"
    assert capsys.readouterr().out.count(note) == 1
    if records > 1:
        assert list(events(tmp_path / "run", "lr")) == list(range(records - 1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full disk")
def test_what_the_disk_refused_does_not_come_back_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog.open(tmp_path, "run") as log:
        full = Path("/dev/full").open("wb")  # noqa: SIM115
        monkeypatch.setattr(log._events._records, "_writer", full)  # type: ignore[union-attr]
        log.epoch(record(0))
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert capsys.readouterr().out.count("No space left on device; the run goes on without") == 1


FULL_DISK = """
import pathlib, sys
from ffcv_train.training.runlog import RunLog
folder = pathlib.Path(sys.argv[1])
values = {100 * "a": {f"{number}": 0.5 for number in range(20)}}  # TensorBoard repeats the outer name for each
with RunLog.open(folder, "run") as log:
    log.epoch({"epoch": 0, **values})
    with (folder / "run/other").open("wb", buffering=0) as other:
        try:
            while True:
                other.write(bytes(4096))
        except OSError:
            pass
    for epoch in range(1, 5):  # the log has room in its page of memory, the events soon need another
        log.epoch({"epoch": epoch, **values})
"""


def test_a_disk_that_is_full_for_tensorboard(tmp_path: Path) -> None:
    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    done = subprocess.run(
        [*own, f'{mount} && "$@" && cat {tmp_path}/run/log.jsonl', "sh", sys.executable, "-c", FULL_DISK, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left on device; the run goes on without") == 1
    assert [json.loads(line)["epoch"] for line in done.stdout.splitlines() if line.startswith("{")] == list(range(5))


def test_a_full_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_after(0, monkeypatch)
    with pytest.raises(UserError, match=r"cannot write .*run: No space left on device"):
        RunLog.open(tmp_path, "run")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        RunLog.open(tmp_path / "file", "run")
    with RunLog.open(tmp_path, "run", tensorboard=False) as log:
        (tmp_path / "run" / "log.jsonl").unlink()
        (tmp_path / "run" / "log.jsonl").mkdir()
        with pytest.raises(UserError, match=r"cannot write .*log\.jsonl"):
            log.epoch(record(0))


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_to_plain() -> None:
    value = {
        "array": np.array([1.0, np.nan], dtype=np.float32),
        "tensor": torch.tensor([1, 2]),
        "dtype": torch.bfloat16,
        "bool": [True, np.True_],
        3: (None, np.float64(0.5), -math.inf),
    }
    expected = {
        "array": [1.0, None],
        "tensor": [1, 2],
        "dtype": "torch.bfloat16",
        "bool": [True, True],
        "3": [None, 0.5, None],
    }
    assert to_plain(value) == expected
    json.dumps(to_plain(value), allow_nan=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress.time, "monotonic", fake)
    monkeypatch.setattr(runlog.time, "monotonic", fake)
    return fake


def test_plain_progress_is_a_line_now_and_then(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog.open(tmp_path, "run", tensorboard=False, plain_interval=30.0) as log:
        for step in range(1, 101):
            log.progress(1, 3, step, 100, images_per_s=1234.4, loss=2.5 if step == 50 else None)
            clock.now += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    # 0.6 of an epoch took 60 s, 1.39 epochs are left.
    assert lines[1] == "epoch 2/3 train 61/100  1,234 images/s  loss 2.5000  ETA 2:19"


def test_terminal_progress_is_redrawn(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    line = ProgressLine(console=console)
    for step in range(5):
        assert line.due()
        line.show("epoch 1/3 train", step, 5, f"loss {step}")
        assert not line.due()
        clock.now += 0.3
    line.print("[not] markup, \x1b[31mred")
    line.close()
    text = console.file.getvalue()
    assert "loss 4" in text
    assert "4/5" in text
    assert "[not] markup, \\x1b[31mred" in text, "what is named steers no terminal"
    assert text.count("\x1b[2K") >= 4  # lines erased and drawn again


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "0:10"), (187, "3:07"), (3723, "1:02:03"), (math.inf, "?")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_summary_leaves_out_what_is_missing() -> None:
    assert epoch_summary({"epoch": 4}) == "epoch 5"
    assert epoch_summary({"epoch": 4, "data_wait": 0.034, "seconds": 61.2}) == "epoch 5  waiting for data 3%  1:01"


def test_environment_is_json_and_names_versions() -> None:
    found = describe_environment()
    assert to_plain(json.loads(json.dumps(found))) == found
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "torchvision", "ffcv", "numba", "numpy", "timm", "cuda"} <= set(found["versions"])
    assert found["device"]


def test_versions_do_not_import_ffcv() -> None:
    # Importing ffcv sets the number of torch's threads to one.
    code = "import sys; from ffcv_train.system import environment as e; e.versions(); "
    code += "sys.exit(not {'ffcv', 'torch'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] is None


def test_git_revision_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "code" / "ffcv_train"
    package.mkdir(parents=True)
    monkeypatch.setattr(ffcv_train, "__file__", str(package / "__init__.py"))
    assert git_revision() is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(package.parent), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_revision() is None  # no commit yet
    (package / "a.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "a")
    assert git_revision() == git("rev-parse", "HEAD")
    (package / "a.py").write_text("changed")
    assert git_revision() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None
