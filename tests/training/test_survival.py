"""What a run survives: signals that come twice, ends within a validation, data that moves, other runs in its folder."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ffcv_train.config.schema import TrainingConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.waiting import NoBatchError
from ffcv_train.models.checkpoint import load_checkpoint, save_checkpoint
from ffcv_train.models.cifar_resnet import CifarResNet
from ffcv_train.system import resources, signals
from ffcv_train.system.errors import UserError
from ffcv_train.system.resources import available_bytes
from ffcv_train.system.signals import StopRequest
from ffcv_train.training import trainer as trainer_module
from ffcv_train.training.ema import WeightAverage
from ffcv_train.training.optim import create_optimizer, load_optimizer
from ffcv_train.training.runlog import RunLog
from ffcv_train.training.status import Status, StatusBoard
from ffcv_train.training.trainer import Stopped, Trainer
from tests.support.photographs import ROOT
from tests.support.runs import ALONE, Betons, config, free_port, log, options, run_script, same_weights, train


class Killed(BaseException):
    """Nothing that the trainer handles."""


def test_repeated_signals_change_nothing_but_an_impatient_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGTERM
        later = time.monotonic() + 1.5
        monkeypatch.setattr(signals.time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("dies_in", [0, 1])
def test_an_epoch_whose_validation_was_cut_off_is_validated_at_resuming(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int
) -> None:
    whole = train(small_betons, tmp_path, "--logging.run=whole")
    validate = Trainer.validate

    def die(self: Trainer, model: nn.Module, epoch: int) -> dict[str, Any]:
        if epoch == dies_in:
            raise Killed
        return validate(self, model, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", die)
        with pytest.raises(Killed):
            train(small_betons, tmp_path, "--logging.run=parts")
    parts = train(small_betons, tmp_path, "--logging.run=parts", "--training.resume=auto")
    assert same_weights(whole / "final.pt", parts / "final.pt")
    assert same_weights(whole / "best.pt", parts / "best.pt")
    for a, b in zip(log(whole), log(parts), strict=True):
        assert (a["epoch"], a["top_1"], a["train_loss"]) == (b["epoch"], b["top_1"], b["train_loss"])


def test_a_stop_at_the_end_of_an_epoch_does_not_wait_for_validation(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StatusBoard.read

    def read_that_another_rank_stops(self: StatusBoard, stop: StopRequest) -> Status | None:
        status = read(self, stop)
        return status and dataclasses.replace(status, stop=True)

    with monkeypatch.context() as patch:
        patch.setattr(StatusBoard, "read", read_that_another_rank_stops)
        patch.setattr(Trainer, "validate", lambda *_: pytest.fail("validated"))
        with pytest.raises(Stopped):
            train(small_betons, tmp_path, "--logging.run=r")
    assert load_checkpoint(tmp_path / "r" / "last.pt")["unfinished"]["epoch"] == 0
    run = train(small_betons, tmp_path, "--logging.run=r", "--training.resume=auto")
    assert [line["epoch"] for line in log(run)] == [0, 1]


def stopped_run(betons: Betons, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """A run named r that was stopped after step 2 of epoch 2."""
    step = Trainer.train_step

    def stop(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = step(self, epoch, number, batches)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(Stopped):
            train(betons, folder, "--logging.run=r", *more)
    return folder / "r"


def test_a_moved_data_set_can_be_resumed_but_not_another_one(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(small_betons, tmp_path, monkeypatch)
    moved = []
    (tmp_path / "moved").mkdir()
    for path in small_betons:
        moved.append(tmp_path / "moved" / path.name)
        shutil.copy(path, moved[-1])
        shutil.copy(f"{path}.json", f"{moved[-1]}.json")
    sidecars = [Path(f"{path}.json") for path in moved]
    before = [sidecar.read_text() for sidecar in sidecars]
    for sidecar, text in zip(sidecars, before, strict=True):
        sidecar.write_text(text.replace("class0", "zebra"))
    arguments = ["--logging.run=r", "--training.resume=auto", "--validation.batch_size=7"]
    with pytest.raises(UserError, match="calls label 0 'class0', the data set calls it 'zebra'"):
        train((moved[0], moved[1]), tmp_path, *arguments)
    for sidecar, text in zip(sidecars, before, strict=True):
        sidecar.write_text(text)
    run = train((moved[0], moved[1]), tmp_path, *arguments)
    assert [line["epoch"] for line in log(run)] == [0, 1]


def test_passes_may_change_within_an_epoch_the_memory_format_may_not(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["--training.amp=off", "--model.arch=convnext_atto", "--resolution.min_res=32"]
    whole = train(small_betons, tmp_path, "--logging.run=whole", *plain)
    stopped_run(small_betons, tmp_path, monkeypatch, *plain)
    resume = [*plain, "--logging.run=r", "--training.resume=auto"]
    with pytest.raises(UserError, match=r"model\.channels_last was True, is False"):
        train(small_betons, tmp_path, *resume, "--model.channels_last=0")
    run = train(small_betons, tmp_path, *resume, "--training.accumulate=2", "--training.global_batch_size=16")
    assert log(run)[1]["train_loss"] == pytest.approx(log(whole)[1]["train_loss"], abs=1e-4)


def test_options_that_came_later_have_their_defaults_in_old_checkpoints(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(small_betons, tmp_path, monkeypatch)
    state = torch.load(run / "last.pt", weights_only=True)
    del state["config"]["loss"]["beta"]
    torch.save(state, run / "last.pt")
    assert len(log(train(small_betons, tmp_path, "--logging.run=r", "--training.resume=auto"))) == 2
    state["config"]["loss"]["alpha_end"] = 0.7
    torch.save(state, run / "last.pt")
    with pytest.raises(UserError, match=r"loss.alpha_end was 0.7, is 0.2"):
        train(small_betons, tmp_path, "--logging.run=r", "--training.resume=auto")


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    first = RunLog.open(tmp_path, "run", tensorboard=False)
    with pytest.raises(UserError, match="another process is training into"):
        RunLog.open(tmp_path, "run", tensorboard=False)
    first.close()
    RunLog.open(tmp_path, "run", tensorboard=False).close()


def test_continuing_one_run_under_the_name_of_another_is_refused(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(small_betons, tmp_path, monkeypatch)
    other = train(small_betons, tmp_path, "--logging.run=other", "--training.seed=5")
    before = (other / "log.jsonl").read_text()
    with pytest.raises(UserError, match="holds another run than"):
        train(small_betons, tmp_path, "--logging.run=other", f"--training.resume={tmp_path / 'r' / 'last.pt'}")
    assert (other / "log.jsonl").read_text() == before


def test_a_fresh_start_where_a_resume_was_asked_for_is_said(
    small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_betons, tmp_path, "--training.resume=auto", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    assert f"no checkpoint of this configuration in {tmp_path}: a new run starts" in capsys.readouterr().out


def test_names_of_runs_are_not_taken_twice(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffcv_train.training import resume

    class Noon(resume.datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr(resume.datetime, "datetime", Noon)
    settings = config(small_betons, tmp_path / "runs")
    with ThreadPoolExecutor(3) as pool:
        # Each of the three looks for the folder before any of them makes it.
        meeting, mkdir = Barrier(3, timeout=120), Path.mkdir

        def make(folder: Path, *rest: Any, **more: Any) -> None:
            if folder.name == first:
                meeting.wait()
            mkdir(folder, *rest, **more)

        first = "2026-01-02_12-00-00_cifar_resnet20"
        monkeypatch.setattr(Path, "mkdir", make)
        names = list(pool.map(lambda _: resume.claim_run(settings), range(3)))
    assert sorted(names) == [first, f"{first}_2", f"{first}_3"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        resume.claim_run(config(small_betons, tmp_path / "file"))


def test_a_cached_data_set_counts_as_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    (tmp_path / "memory.max").write_text(f"{6 * gib}\n")
    (tmp_path / "memory.current").write_text(f"{5 * gib}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {gib}\nactive_file {3 * gib}\n")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: type("M", (), {"available": 100 * gib})())
    assert available_bytes() == 5 * gib


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full disk")
def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    (tmp_path / ".c.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint({"model": {"w": torch.zeros(100_000)}}, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_the_average_of_weights_is_torchs() -> None:
    torch.manual_seed(0)
    model = CifarResNet(3, 4)
    ours, theirs = (
        WeightAverage(model, 0.9),
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        model(torch.randn(8, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        ours.update()
        theirs.update_parameters(model)
    ours.copy_counters()
    reference = theirs.module.state_dict()
    assert ours.updates == 4
    for name, tensor in ours.module.state_dict().items():
        expected = reference[name] if tensor.is_floating_point() else model.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_an_optimizer_keeps_the_ways_of_its_own_device() -> None:
    model = nn.Linear(3, 2)
    optimizer = create_optimizer(model, TrainingConfig(), torch.device("cpu"))
    before = [(group.get("fused"), group.get("foreach")) for group in optimizer.param_groups]
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.update(fused=True, foreach=True, lr=0.123)
    load_optimizer(optimizer, state)
    assert [(group.get("fused"), group.get("foreach")) for group in optimizer.param_groups] == before
    assert {group["lr"] for group in optimizer.param_groups} == {0.123}


def hang_at(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, step: int, accumulate: int = 1) -> None:
    """In epoch 2 no batch comes for step `step` (from 0) but its first `accumulate` - 1, and SIGTERM does."""
    epoch = trainer.train_loader.epoch

    def hanging(give_up: Callable[[], bool]) -> Iterator[Batch]:
        for number, batch in enumerate(epoch(give_up)):
            if trainer.epoch == 1 and number == (step + 1) * accumulate - 1:
                os.kill(os.getpid(), signal.SIGTERM)
                while not give_up():
                    time.sleep(0.01)
                raise NoBatchError("no batch from t.beton for 9 s")
            yield batch

    monkeypatch.setattr(trainer.train_loader, "epoch", hanging)
    monkeypatch.setattr(trainer_module, "_PATIENCE_SECONDS", 0.1)


def test_a_signal_while_no_batch_comes_stops_after_the_last_whole_step(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_betons, tmp_path, "--logging.run=whole")
    trainer = Trainer(config(small_betons, tmp_path, "--logging.run=parts"), ALONE)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped by SIGTERM"):
        hang_at(trainer, patch, 2)
        trainer.fit()
    state = load_checkpoint(tmp_path / "parts/last.pt")
    assert (state["epoch"], state["step"]) == (1, 2)
    parts = train(small_betons, tmp_path, "--logging.run=parts", "--training.resume=auto")
    assert same_weights(whole / "final.pt", parts / "final.pt")


def test_half_a_step_is_never_saved(small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--logging.run=r", "--training.accumulate=2", "--training.batch_size=8"]
    trainer = Trainer(config(small_betons, tmp_path, *options), ALONE)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"got SIGTERM while .*last\.pt is untouched"):
        hang_at(trainer, patch, 2, accumulate=2)
        trainer.fit()
    state = load_checkpoint(tmp_path / "r/last.pt")
    assert (state["epoch"], state["step"]) == (1, 0)


def test_a_signal_during_validation_stops_at_once_and_loses_nothing(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_betons, tmp_path, "--logging.run=whole")
    trainer = Trainer(config(small_betons, tmp_path, "--logging.run=parts"), ALONE)
    epoch = trainer.val_loader.epoch

    def signalled(give_up: Callable[[], bool]) -> Iterator[Batch]:
        for number, batch in enumerate(epoch(give_up)):
            assert number < 2, "validated to the end"
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(trainer.val_loader, "epoch", signalled)
    with pytest.raises(Stopped):
        trainer.fit()
    parts = train(small_betons, tmp_path, "--logging.run=parts", "--training.resume=auto")
    assert same_weights(whole / "final.pt", parts / "final.pt")
    assert [line["top_1"] for line in log(whole)] == [line["top_1"] for line in log(parts)]


def test_a_rank_whose_launcher_is_killed_stops_and_frees_the_run(small_betons: Betons, tmp_path: Path) -> None:
    arguments = options(small_betons, tmp_path, "--training.epochs=4000", "--logging.run=r", "--validation.every=4000")
    agent = 'import subprocess, sys; subprocess.Popen([sys.executable, "train_imagenet.py", *sys.argv[1:]]).wait()'
    told = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "errors").open("w") as errors:
        launcher = subprocess.Popen(
            [sys.executable, "-c", agent, *arguments], cwd=ROOT, env=os.environ | told | where, stderr=errors
        )
    deadline = time.monotonic() + 240
    while not (tmp_path / "r/last.pt").exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    (rank,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs([rank], timeout=120)[1] == []
    said = (tmp_path / "errors").read_text()
    assert f"error: torchrun's agent (process {launcher.pid}) has ended without a word; rank 0 stops" in said
    assert "stopped by SIGTERM; continue from" in said
    RunLog.open(tmp_path, "r", tensorboard=False, resumed_epoch=9999).close()


def test_two_ranks_stop_at_once_when_told_twice_and_resume(small_betons: Betons, tmp_path: Path) -> None:
    more = ["--training.epochs=400", "--logging.run=r", "--logging.interval=50", "--training.batch_size=8"]
    arguments = options(small_betons, tmp_path, *more)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--shutdown_timeout=200"]
    launcher = [*torchrun, "--nproc_per_node=2", f"--master_port={free_port()}"]
    child = subprocess.Popen(
        [*launcher, "train_imagenet.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "r" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in psutil.Process(child.pid).children():
        worker.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=240)
    assert "stopped by SIGTERM" in errors, errors
    state = load_checkpoint(tmp_path / "r" / "last.pt")
    done = len((tmp_path / "r" / "log.jsonl").read_text().splitlines())
    assert 0 < done < 400 and state["epoch"] in (done, done + 1)
    # The rest of the run is short: the checkpoint is made one of the last epoch but one.
    state["epoch"], state["step"] = 398, state["step"] if not state["unfinished"] else 0
    state["unfinished"] = None
    torch.save(state, tmp_path / "r" / "last.pt")
    again = run_script([*arguments, "--training.resume=auto"], 2)
    assert again.returncode == 0, again.stderr
    lines = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines[-2:]] == [398, 399] and lines[-1]["count"] == 50


def test_ranks_that_do_not_see_the_checkpoint_do_not_wait_for_ever(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(small_betons, tmp_path, monkeypatch)
    asked: list[Any] = []

    def answer_of_rank_0(value: Any) -> Any:
        asked.append(value)
        return run / "last.pt" if len(asked) == 1 else value

    monkeypatch.setattr(trainer_module, "from_rank_0", answer_of_rank_0)
    trainer = Trainer(config(small_betons, tmp_path, "--logging.run=r", "--training.resume=auto"), ALONE)
    assert asked[0] == run / "last.pt" and (trainer.epoch, trainer.step) == (1, 2)


def test_training_goes_on_when_nobody_reads_its_output(small_betons: Betons, tmp_path: Path) -> None:
    command = [sys.executable, "train_imagenet.py", *options(small_betons, tmp_path, "--logging.run=r")]
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=240) == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "r" / "final.pt").is_file()
    assert (tmp_path / "stderr").read_text() == ""


def test_a_script_whose_reader_leaves_says_nothing(tmp_path: Path) -> None:
    program = "from ffcv_train.cli.main import run_main\nrun_main(lambda: [print('line') for _ in range(100_000)])"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == ""
