"""Training on CPU: steps, resuming, stopping, several processes, and what is refused before the first step."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.models.checkpoint import load_checkpoint, save_checkpoint
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.training import trainer as trainer_module
from ffcv_train.training.trainer import Stopped, Trainer
from tests.support.photographs import ROOT, Samples, crops_of_photographs, write_stock_beton
from tests.support.runs import (
    ALONE,
    Betons,
    config,
    log,
    options,
    run_here,
    run_script,
    same_weights,
    train,
)


def test_a_run_leaves_its_records_and_learns(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--training.epochs=6", "--logging.run=r", "--logging.tensorboard=1")
    assert {"params.json", "log.jsonl", "last.pt", "best.pt", "final.pt"} <= {p.name for p in run.iterdir()}
    assert any(p.name.startswith("events.out") for p in run.iterdir())
    params = json.loads((run / "params.json").read_text())
    assert params["config"]["training"]["epochs"] == 6
    assert (params["global_batch"], params["steps_per_epoch"], params["num_classes"]) == (16, 6, 4)
    assert torch.__version__.startswith(params["versions"]["torch"])
    lines = log(run)
    assert [line["epoch"] for line in lines] == list(range(6))
    assert [line["resolution"] for line in lines] == [24] + [32] * 5
    assert [line["alpha"] for line in lines] == pytest.approx([0.1 + 0.1 * e / 6 for e in range(6)])
    for key in ("train_loss", "top_1", "top_5", "nll", "ece", "lr", "images_per_s", "data_wait", "peak_memory_gb"):
        assert key in lines[0]
    assert lines[-1]["train_loss"] < 0.85 * lines[0]["train_loss"]
    assert lines[-1]["count"] == 50
    final = load_checkpoint(run / "final.pt")
    save_file(final["model"], run / "weights.safetensors")  # which takes contiguous tensors only
    assert final["class_names"] == [f"class{i}" for i in range(4)]
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in final["model"])
    assert "optimizer" not in final
    assert load_checkpoint(run / "best.pt")["best_top_1"] == max(line["top_1"] for line in lines)


def test_what_a_beginner_may_not_have_meant_is_said(small_betons: Betons, tmp_path: Path) -> None:
    """To validate on what is trained on; to start a network that has a published one's name from nothing."""

    def notes(train: Path, val: Path, arch: str) -> list[str]:
        trainer = Trainer(config((train, val), tmp_path, f"--model.arch={arch}"), ALONE)
        trainer.train_loader.close()
        trainer.val_loader.close()
        return [*trainer.notes, *trainer.learner.notes]

    first, second = small_betons
    assert notes(first, second, "timm/test_resnet") == []
    same, random = notes(second, second, "timm/test_resnet.r160_in1k")
    assert "are the same images, so that validation says what was learned by heart" in same
    assert random.endswith("starts from random ones; --model.weights=timm:test_resnet.r160_in1k starts from those")


def test_memory_of_one_side_is_given_back_before_the_next(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(small_betons, tmp_path), ALONE)
    done: list[Any] = []
    set_resolution = trainer.train_loader.set_resolution
    monkeypatch.setattr(trainer_module, "give_back_memory", lambda: done.append("given back"))
    monkeypatch.setattr(trainer.train_loader, "set_resolution", lambda side: done.append(side) or set_resolution(side))
    trainer.fit()
    assert done == ["given back", 24, "given back", 32]


@pytest.mark.parametrize(
    "more",
    [
        ["--training.amp=bf16"],
        ["--training.optimizer=lamb", "--lr.lr=0.005"],
        ["--training.optimizer=lion", "--lr.lr=0.0005"],
        ["--training.optimizer=muon", "--lr.lr=0.005", "--finetune.head_lr=2"],
        ["--training.ema_decay=0.8", "--training.accumulate=2", "--training.clip_grad=1", "--training.optimizer=adamw"],
        ["--data.in_memory=0", "--model.channels_last=0", "--training.nesterov=1"],
        ["--data.sampling=class_balanced"],
        [
            *("--augment.policy=rand_augment", "--augment.erase=0.5", "--augment.repeats=3"),
            *("--augment.mixup=0.8", "--augment.cutmix=1", "--data.in_memory=0"),
        ],
    ],
)
def test_resuming_within_an_epoch_equals_not_stopping(
    small_betons: Betons, tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_betons, tmp_path, "--logging.run=whole", *more)
    step = Trainer.train_step

    def stop_in_second_epoch(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = step(self, epoch, number, batches)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    monkeypatch.setattr(Trainer, "train_step", stop_in_second_epoch)
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        train(small_betons, tmp_path, "--logging.run=parts", *more)
    assert stopped.value.exit_status == 143
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == 2
    parts = train(small_betons, tmp_path, "--logging.run=parts", "--training.resume=auto", *more)
    assert same_weights(whole / "final.pt", parts / "final.pt")
    if load_checkpoint(whole / "final.pt")["ema"]:
        assert same_weights(whole / "final.pt", parts / "final.pt", "ema")
    timeless = ("epoch", "train_loss", "top_1", "nll", "ece", "lr", "resolution", "alpha")
    for a, b in zip(log(whole), log(parts), strict=True):
        assert {key: a[key] for key in timeless} == pytest.approx({key: b[key] for key in timeless}, rel=1e-12)


def test_auto_resume_takes_the_newest_run_of_the_same_configuration(small_betons: Betons, tmp_path: Path) -> None:
    first = train(small_betons, tmp_path, "--training.resume=auto", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    # A finished run is not trained again, and another configuration starts afresh.
    before = (first / "final.pt").read_bytes()
    again = train(small_betons, tmp_path, "--training.resume=auto", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    assert again == first and (first / "final.pt").read_bytes() == before
    # Where memory was too short for validation, fewer images at once continue the run.
    fewer = ("--training.epochs=1", "--lr.lr_peak_epoch=0", "--validation.batch_size=5")
    assert train(small_betons, tmp_path, "--training.resume=auto", *fewer) == first
    other = Trainer(config(small_betons, tmp_path, "--training.resume=auto", "--lr.lr=0.01"), ALONE)
    assert (other.epoch, other.step) == (0, 0)


def test_a_loss_that_is_not_finite_stops_and_spares_the_checkpoint(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, normalise = Trainer.train_step, Normaliser.__call__

    def spoil(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        if (epoch, number) == (1, 3):
            monkeypatch.setattr(Normaliser, "__call__", lambda s, x: normalise(s, x) * float("nan"))
        return step(self, epoch, number, batches)

    monkeypatch.setattr(Trainer, "train_step", spoil)
    with pytest.raises(UserError, match=r"not finite \(epoch 2 of 3, .*lr 0\.0"):
        train(small_betons, tmp_path, "--logging.run=r", "--training.epochs=3", "--logging.interval=1")
    state = load_checkpoint(tmp_path / "r" / "last.pt")
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values() if tensor.is_floating_point())


def test_an_exploding_last_step_of_an_epoch_is_not_saved(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def explode(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = step(self, epoch, number, batches)
        if (epoch, number) == (1, self.steps - 1):
            with torch.no_grad():
                next(self.learner.model.parameters()).mul_(float("inf"))
        return lr

    monkeypatch.setattr(Trainer, "train_step", explode)
    with pytest.raises(UserError, match="weights are not finite after epoch 2"):
        train(small_betons, tmp_path, "--logging.run=r")
    assert load_checkpoint(tmp_path / "r" / "last.pt")["epoch"] == 1


def test_accumulation_and_batch_size_make_the_same_gradient(small_betons: Betons, tmp_path: Path) -> None:
    free_of_batch_norm = ["--model.arch=convnext_atto", "--training.amp=off", "--training.epochs=1", "--data.flip=0"]
    free_of_batch_norm += ["--lr.lr_peak_epoch=0", "--resolution.min_res=32", "--loss.name=ls"]
    whole = train(small_betons, tmp_path, *free_of_batch_norm, "--logging.run=a", "--training.batch_size=32")
    parts = train(
        small_betons,
        tmp_path,
        *free_of_batch_norm,
        "--logging.run=b",
        "--training.batch_size=8",
        "--training.accumulate=4",
    )
    a, b = load_checkpoint(whole / "final.pt")["model"], load_checkpoint(parts / "final.pt")["model"]
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a)


def test_the_number_of_workers_changes_no_weight(small_betons: Betons, tmp_path: Path) -> None:
    for order in ("--data.in_memory=1", "--data.in_memory=0"):
        one = train(small_betons, tmp_path, order, f"--logging.run=one{order[-1]}")
        two = train(small_betons, tmp_path, order, f"--logging.run=two{order[-1]}", "--data.num_workers=2")
        assert same_weights(one / "final.pt", two / "final.pt")


def test_two_processes_equal_one_on_the_same_global_batch(small_betons: Betons, tmp_path: Path) -> None:
    more = ["--model.arch=convnext_atto", "--training.amp=off", "--training.global_batch_size=32"]
    more += ["--training.epochs=1", "--lr.lr_peak_epoch=0", "--training.ema_decay=0.5", "--logging.interval=1"]
    more += ["--resolution.min_res=32"]
    done = run_script(options(small_betons, tmp_path, *more, "--logging.run=two"), 2)
    assert done.returncode == 0, done.stderr
    assert "batch 16 per device × 2 devices × 1 passes = 32 globally" in done.stdout
    train(small_betons, tmp_path, *more, "--logging.run=one")
    one, two = (load_checkpoint(tmp_path / run / "final.pt") for run in ("one", "two"))
    for part in ("model", "ema"):
        assert all(torch.allclose(one[part][name], two[part][name], atol=2e-5) for name in one[part])
    a, b = (log(tmp_path / run)[-1] for run in ("one", "two"))
    assert a["count"] == b["count"] == 50
    assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-5)
    assert a["top_1"] == pytest.approx(b["top_1"], abs=0.021)  # a sample on the fence may fall to the other side
    assert a["nll"] == pytest.approx(b["nll"], abs=1e-4)


def test_ctrl_c_and_sigterm_end_the_script_with_a_checkpoint(small_betons: Betons, tmp_path: Path) -> None:
    arguments = options(small_betons, tmp_path, "--training.epochs=500", "--logging.run=r")
    child = subprocess.Popen(
        [sys.executable, "train_imagenet.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "stopped by SIGINT" in errors and "Traceback" not in errors
    state = load_checkpoint(tmp_path / "r" / "last.pt")
    assert state["epoch"] >= 1 and "optimizer" in state


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.train_dataset="], "data.train_dataset is not set"),
        (["--data.val_dataset=absent.beton"], "absent.beton does not exist"),
        (["--model.num_classes=3"], "num_classes=3.*4 classes"),
        (["--model.arch=resnet5"], "resnet5.*did you mean"),
        (["--loss.name=maxsupp"], "maxsupp.*maxsup"),
        (["--training.batch_size=97"], "96 samples, fewer than one global batch of 97"),
        (["--training.global_batch_size=15", "--training.accumulate=2"], "multiple of 2"),
        (["--resolution.min_res=20"], "min_res=20 is not a multiple"),
        (["--resolution.min_res=64"], "min_res=64 is above"),
        (["--lr.lr_peak_epoch=9"], "lr_peak_epoch=9"),
        (["--data.crop_scale=0.9,0.1"], "crop_scale"),
        (["--data.mean=0.5,0.5,0.5"], "belong together"),
        (["--model.arch=vit_tiny_patch16_224"], "24 x 24|32 x 32"),
        (["--model.weights=absent.pt"], "absent.pt"),
        (["--training.resume=absent.pt"], "absent.pt does not exist"),
    ],
)
def test_bad_input_is_refused_before_any_step(
    small_betons: Betons, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        train(small_betons, tmp_path, *more)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_data_sets_that_do_not_fit_each_other_are_refused(small_betons: Betons, tmp_path: Path) -> None:
    other = write_stock_beton(tmp_path / "o.beton", Samples(crops_of_photographs(8, 32, 32), [4] * 8), "raw", 5)
    with pytest.raises(UserError, match=r"has the class 'class4', which .*; make both of the same classes"):
        train((small_betons[0], other), tmp_path)
    bare = write_stock_beton(tmp_path / "b.beton", Samples(crops_of_photographs(40, 32, 32), [9] * 40), "raw")
    with pytest.raises(UserError, match=r"nothing names the classes of .*num_classes"):
        train((bare, bare), tmp_path)
    with pytest.raises(UserError, match=r"label 9.*4 classes"):
        train((bare, bare), tmp_path, "--model.num_classes=4")


def test_too_little_memory_is_refused(small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffcv_train.data.open.available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="in_memory=0"):
        train(small_betons, tmp_path)
    train(small_betons, tmp_path, "--data.in_memory=0", "--training.epochs=1")


def test_a_checkpoint_of_another_run_is_refused(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--logging.run=r", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    again = f"--training.resume={run / 'last.pt'}"
    for more, words in (
        (["--lr.lr=0.3"], "lr.lr was 0.05, is 0.3"),
        (["--model.arch=cifar_resnet32"], "model.arch was cifar_resnet20, is cifar_resnet32"),
        (["--training.batch_size=8"], "global_batch 16, this run has 8; set --training.global_batch_size=16"),
        ([f"--training.resume={run / 'final.pt'}"], "weights only"),
    ):
        with pytest.raises(UserError, match=words):
            train(small_betons, tmp_path, "--training.epochs=1", "--lr.lr_peak_epoch=0", again, *more)
    with pytest.raises(UserError, match="the file says that it is of cifar_resnet20"):
        train(small_betons, tmp_path, f"--model.weights={run / 'final.pt'}", "--model.arch=cifar_resnet32")


def test_starting_from_weights_takes_them_and_their_normalisation(small_betons: Betons, tmp_path: Path) -> None:
    statistics = ["--data.mean=0.4,0.5,0.6", "--data.std=0.2,0.2,0.2"]
    run = train(small_betons, tmp_path, "--logging.run=r", *statistics)
    second = Trainer(config(small_betons, tmp_path, f"--model.weights={run / 'final.pt'}"), ALONE)
    assert second.learner.network.normalise.mean == (0.4, 0.5, 0.6)
    stored = load_checkpoint(run / "final.pt")["model"]
    assert all(torch.equal(second.learner.model.state_dict()[name], stored[name]) for name in stored)


def test_the_script_says_errors_in_a_line_and_exits_with_2(
    small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as ended:
        run_here("train_imagenet.py", *options(small_betons, tmp_path, "--training.device=cuda"))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.strip().splitlines()[-1].startswith("error: training.device is cuda, but PyTorch sees no GPU")
    assert "Traceback" not in said


def test_a_port_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="master_port"), process_group("cpu"):
            pass


def test_compiled_training_recompiles_once_per_resolution(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    compile_ = torch.compile

    def counting(model: Any, **kwargs: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            compiled.append(1)
            return graph.forward

        return compile_(model, backend=backend, **kwargs)

    monkeypatch.setattr(torch, "compile", counting)
    torch._dynamo.reset()
    train(small_betons, tmp_path, "--model.compile=1", "--training.epochs=4", "--resolution.end_ramp=2")
    assert len(compiled) == 2  # 24 and 32 pixels


def test_a_network_with_more_outputs_than_named_classes(small_betons: Betons, tmp_path: Path) -> None:
    """As for a part of ImageNet's classes with the labels of the whole: evaluation and logits take it as it is."""
    run = train(small_betons, tmp_path, "--model.num_classes=6", "--training.epochs=1", "--logging.run=r")
    assert load_checkpoint(run / "final.pt")["class_names"] == ["class0", "class1", "class2", "class3", "4", "5"]
    run_here("eval.py", "--checkpoint", run / "final.pt")
    run_here("viz/logits.py", "--checkpoint", run / "final.pt", "--output", tmp_path / "logits.pt")
    assert read_logits(tmp_path / "logits.pt").class_names == ("class0", "class1", "class2", "class3", "4", "5")


@pytest.mark.parametrize("loss", ["weighted_ce", "balanced_softmax", "ldam"])
def test_criteria_for_long_tails_know_the_training_sets_counts(small_betons: Betons, tmp_path: Path, loss: str) -> None:
    labels = [0] * 20 + [1] * 9 + [2] * 2 + [3]
    tail = write_stock_beton(tmp_path / "t.beton", Samples(crops_of_photographs(32, 32, 32), labels), "raw", 4)
    settings = config((tail, small_betons[1]), tmp_path, f"--loss.name={loss}", "--loss.weight_beta=1")
    trainer = Trainer(settings, ALONE)
    counts = torch.tensor([20.0, 9.0, 2.0, 1.0])
    expected = {
        "weighted_ce": {"weights": (1 / counts) / (1 / counts).mean()},
        "balanced_softmax": {"log_priors": (counts / 32).log()},
        "ldam": {"margins": 0.5 * counts**-0.25},
    }[loss]
    for name, values in expected.items():
        torch.testing.assert_close(trainer.learner.criterion.get_buffer(name), values)
    lacking = write_stock_beton(tmp_path / "l.beton", Samples(crops_of_photographs(32, 32, 32), [0, 3] * 16), "raw", 4)
    with pytest.raises(UserError, match="no sample of label 1"):
        train((lacking, small_betons[1]), tmp_path, f"--loss.name={loss}")


def test_validation_that_is_not_finite_is_said_at_once_and_training_goes_on(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = Trainer._finish_epoch

    def overflow(self: Trainer, epoch: int, record: dict[str, Any]) -> None:
        # What a batch that is far out leaves in running statistics: no loss of training sees them.
        buffers = dict(self.learner.model.named_buffers())
        next(b for name, b in buffers.items() if name.endswith("running_mean")).fill_(float("nan"))
        finish(self, epoch, record)

    monkeypatch.setattr(Trainer, "_finish_epoch", overflow)
    run = train(small_betons, tmp_path, "--logging.run=r")
    assert [line["nll"] for line in log(run)] == [None, None] and all(line["train_loss"] > 0 for line in log(run))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "validation of the weights after epoch 1 gives logits that are not finite, though the training loss is" in said
    )


def test_one_image_at_a_time_and_batchnorm(
    small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--training.batch_size=1", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    train(small_betons, tmp_path, *one)
    assert "each BatchNorm normalises it by itself" in " ".join(capsys.readouterr().out.split())
    # A transformer has none.
    Trainer(config(small_betons, tmp_path, *one, "--model.arch=cifar_deit_tiny", "--resolution.min_res=32"), ALONE)
    # At 32 pixels the last maps of torchvision's networks are single pixels, where PyTorch's own step fails.
    with pytest.raises(UserError, match=r"layer4\.0\.bn1 sees one value of each channel in an image of 32 pixels"):
        Trainer(config(small_betons, tmp_path, *one, "--model.arch=resnet18", "--resolution.min_res=32"), ALONE)


def test_another_number_of_threads_is_noted_when_resuming(
    small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_betons, tmp_path, "--logging.run=r", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    state = load_checkpoint(run / "last.pt")
    threads = state["threads"]
    assert threads == torch.get_num_threads()
    (run / "final.pt").unlink()
    again = ("--logging.run=r", "--training.resume=auto", "--training.epochs=1", "--lr.lr_peak_epoch=0")
    assert Trainer(config(small_betons, tmp_path, *again), ALONE).notes == []
    torch.set_num_threads(threads + 1)
    try:
        train(small_betons, tmp_path, *again)
    finally:
        torch.set_num_threads(threads)
    said = " ".join(capsys.readouterr().out.split())
    assert f"resumed with {threads + 1} CPU threads, after {threads}" in said and f"OMP_NUM_THREADS={threads}" in said
    # Checkpoints of older versions do not say.
    del state["threads"], state["format"]
    save_checkpoint(state, run / "last.pt")
    (run / "final.pt").unlink()
    assert Trainer(config(small_betons, tmp_path, *again), ALONE).notes == []
