"""All that a checkpoint holds: written by older versions, cut off, overwritten, hostile, of other data."""

import gzip
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_train.config.schema import ModelConfig
from ffcv_train.evaluation.subject import read_subject
from ffcv_train.models.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from ffcv_train.models.factory import create_model
from ffcv_train.models.weights import load_weights
from ffcv_train.system.errors import UserError
from ffcv_train.training.runlog import RunLog
from ffcv_train.training.trainer import Trainer
from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton
from tests.support.runs import ALONE, Betons, config, log, same_weights, train

DATA_FILES = Path(__file__).resolve().parents[1] / "data_files"
RESUME = ["--logging.run=r", "--training.resume=auto"]


class Killed(BaseException):
    """Nothing that the trainer handles."""


def old_run(folder: Path, name: str = "last_of_version_0") -> Path:
    """A run named r that an older version stopped after step 2 of epoch 2 of 2; its weights are coarse."""
    (folder / "r").mkdir(parents=True)
    path = folder / "r" / "last.pt"
    path.write_bytes(gzip.decompress((DATA_FILES / f"{name}.pt.gz").read_bytes()))
    return path


def test_a_checkpoint_of_an_older_version_is_continued(small_betons: Betons, tmp_path: Path) -> None:
    old_run(tmp_path)
    run = train(small_betons, tmp_path, "--training.amp=off", *RESUME)
    last = log(run)[-1]
    # What that version itself made of it.
    assert last["epoch"] == 1 and last["train_loss"] == pytest.approx(1.731248, abs=0.02)
    assert load_checkpoint(run / "final.pt")["epoch"] == 2


def test_blurred_networks_from_before_their_filters_had_keys(small_betons: Betons, tmp_path: Path) -> None:
    """The checkpoint is of a run that ended its first epoch of two; the numbers are what its version made of it."""
    path = old_run(tmp_path, "last_before_blur_keys")
    model = create_model(ModelConfig(arch="cifar_resnet20", use_blurpool=True), 4).eval()
    images = torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32).sin()
    for ema, logits in (
        (False, [-72.668732, -153.463974, 218.734314, -292.290771]),
        (True, [-60.176304, -65.802505, 147.477600, -187.987091]),
    ):
        load_weights(model, path, ema=ema)
        with torch.no_grad():
            torch.testing.assert_close(model(images), torch.tensor([logits]), rtol=1e-4, atol=1e-3)
    more = ["--model.use_blurpool=1", "--training.amp=off", "--training.ema_decay=0.7"]
    run = train(small_betons, tmp_path, *more, *RESUME)
    assert log(run)[-1]["train_loss"] == pytest.approx(1.249948, abs=0.02)
    assert "layer2.0.conv1.blur_filter" in load_checkpoint(run / "final.pt")["ema"]


@pytest.mark.parametrize("moment", ["before the line", "after the line"])
def test_a_run_that_dies_at_its_first_line_of_the_log_goes_on(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    more = ["--validation.every=2", "--training.epochs=3"]
    whole = train(small_betons, tmp_path, "--logging.run=whole", *more)
    epoch = RunLog.epoch

    def die(self: RunLog, record: Any) -> None:
        if moment == "after the line":
            epoch(self, record)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "epoch", die)
        with pytest.raises(Killed):
            train(small_betons, tmp_path, *RESUME, *more)
    run = train(small_betons, tmp_path, *RESUME, *more)
    assert same_weights(run / "final.pt", whole / "final.pt")
    parts = ("epoch", "train_loss", "top_1")
    assert [[line.get(p) for p in parts] for line in log(run)] == [[line.get(p) for p in parts] for line in log(whole)]


def test_a_log_without_a_checkpoint_is_not_told_to_resume(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "log.jsonl").write_text('{"epoch": 0}\n')
    with pytest.raises(UserError, match=r"no last\.pt to continue it from; move the folder away"):
        RunLog.open(tmp_path, "r", tensorboard=False)


def test_a_run_that_lost_its_last_checkpoint_goes_on_from_the_one_before(small_betons: Betons, tmp_path: Path) -> None:
    """As it is told to."""
    run = train(small_betons, tmp_path, "--logging.run=r")
    whole = (run / "final.pt").rename(tmp_path / "final.pt")
    (run / "last.pt").unlink()
    with pytest.raises(UserError, match=r"no last\.pt, but the checkpoint before it; continue .*") as error:
        train(small_betons, tmp_path, *RESUME)
    train(small_betons, tmp_path, "--logging.run=r", str(error.value).rpartition(" with ")[2])
    assert same_weights(run / "final.pt", whole)


def test_no_flipped_bit_passes_for_a_value(tmp_path: Path) -> None:
    path, other = tmp_path / "c.pt", tmp_path / "flipped.pt"
    torch.manual_seed(0)
    save_checkpoint({"model": {"w": torch.randn(500), "b": torch.randn(20)}, "epoch": 3}, path)
    whole, content = load_checkpoint(path), path.read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(400):
        flipped = bytearray(content)
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        other.write_bytes(flipped)
        try:
            state = load_checkpoint(other)
        except UserError as error:
            refused += 1
            assert "flipped.pt" in str(error)
            continue
        assert state["epoch"] == 3
        assert all(torch.equal(state["model"][name], whole["model"][name]) for name in ("w", "b"))
    assert refused > 150  # the others struck padding and dates


def test_weights_with_a_flipped_bit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    model = torch.nn.Linear(30, 30)
    save_checkpoint({"model": model.state_dict()}, path)
    content = bytearray(path.read_bytes())
    start = content.find(model.weight.detach().numpy().tobytes())
    content[start + 2000] ^= 64
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt is .*another CRC-32 than when it was written"):
        load_weights(model, path)


def test_nothing_is_unpacked_that_was_packed_by_another_program(tmp_path: Path) -> None:
    torch.save({"format": 1, "model": {"w": torch.zeros(4)}}, tmp_path / "plain.pt")
    for name in ("bomb.pt", "liar.pt"):
        with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / name, "w") as target:
            for record in source.infolist():
                packed = zipfile.ZIP_DEFLATED if name == "bomb.pt" else zipfile.ZIP_STORED
                target.writestr(record.filename, source.read(record) + bytes(1 << 20), packed)
    content = bytearray((tmp_path / "liar.pt").read_bytes())
    end = content.rfind(b"PK\1\2")
    content[end + 20 : end + 28] = b"\xf0\xff\xff\x7f" * 2
    (tmp_path / "liar.pt").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="compressed"):
        load_checkpoint(tmp_path / "bomb.pt")
    with pytest.raises(DamagedCheckpointError, match="claim more bytes than the file has"):
        load_checkpoint(tmp_path / "liar.pt")
    with pytest.raises(UserError, match="compressed"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "bomb.pt")


def _change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(key, value)


def _weight(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        name = next(iter(state["model"]))
        state["model"][name] = change(state["model"][name])

    return apply


def _buffer(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        first = state["optimizer"]["state"][0]
        first["momentum_buffer"] = change(first["momentum_buffer"])

    return apply


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no optimizer's groups": (lambda s: s["optimizer"].pop("param_groups"), "does not hold what this run needs"),
    "no place": (lambda s: s.pop("step"), "does not hold what this run needs"),
    "no samples": (lambda s: s.pop("samples"), "does not hold what this run needs"),
    "no scaler": (lambda s: s.pop("scaler"), "does not hold what this run needs"),
    "a text for a configuration": (_change("config", "x"), "does not hold what this run needs|config"),
    "a list for an optimizer": (_change("optimizer", [1]), "does not hold what this run needs"),
    "a negative step": (_change("step", -1), "step is -1, where no run of 2 epochs of 6 steps can stand"),
    "a step past the epoch": (_change("step", 7), "step is 7"),
    "an epoch past the end": (_change("epoch", 3), "epoch is 3"),
    "a fraction of an epoch": (_change("epoch", 0.5), "epoch is 0.5"),
    "an endless loss": (_change("mean_loss", float("nan")), "mean_loss is nan"),
    "a text for the best": (_change("best_top_1", "high"), "best_top_1 is high"),
    "another unfinished epoch": (_change("unfinished", {"epoch": 7}), "unfinished is"),
    "an absurd scaler": (_change("scaler", {"scale": "x"}), "scaler's state is not all numbers"),
    "weights that are not finite": (_weight(lambda w: w * float("nan")), "is not finite"),
    "complex weights": (_weight(lambda w: w + 1j), "no plain tensor of real numbers"),
    "sparse weights": (_weight(lambda w: w.to_sparse()), "no plain tensor of real numbers"),
    "a text for a weight": (_weight(lambda w: "w"), "a str, no tensor"),
    "weights of another shape": (_weight(lambda w: w[:1]), "does not hold what this run needs"),
    "weights without content": (_weight(lambda w: torch.zeros(1).expand(1 << 40)), "larger than what the file holds"),
    "a buffer of another shape": (_buffer(lambda b: b[:1]), "momentum_buffer of .* has the shape"),
    "a complex buffer": (_buffer(lambda b: b + 1j), "momentum_buffer of .* no plain tensor of real numbers"),
    "a buffer of texts": (_buffer(lambda b: ["x"]), "does not hold what this run needs"),
}


@pytest.fixture(scope="module")
def prepared(small_betons: Betons, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint's state, and a trainer whose state `load` may fill again and again."""
    folder = tmp_path_factory.mktemp("hostile")
    path = old_run(folder)
    trainer = Trainer(config(small_betons, folder, "--training.amp=off", *RESUME), ALONE)
    yield path, trainer
    trainer.train_loader.close()
    trainer.val_loader.close()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_checkpoint_that_holds_something_else_is_refused_in_a_sentence(
    prepared: Any, tmp_path: Path, case: str
) -> None:
    path, trainer = prepared
    change, words = HOSTILE[case]
    state = load_checkpoint(path)
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=words) as error:
        trainer.state.load(tmp_path / "odd.pt", 0)
    assert "odd.pt" in str(error.value)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(small_betons, tmp_path, "--logging.run=whole")
    validate = Trainer.validate

    def die(self: Trainer, model: torch.nn.Module, epoch: int) -> dict[str, Any]:
        if epoch == 1:
            raise Killed
        return validate(self, model, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", die)
        with pytest.raises(Killed):
            train(small_betons, tmp_path, "--logging.run=r")
    run = tmp_path / "r"
    assert (load_checkpoint(run / "last.pt")["epoch"], load_checkpoint(run / "previous.pt")["epoch"]) == (2, 1)
    content = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"last\.pt is damaged .*; the one before it is .*previous\.pt"):
        train(small_betons, tmp_path, "--logging.run=r", f"--training.resume={run / 'last.pt'}")
    train(small_betons, tmp_path, *RESUME)
    assert "previous.pt: continued from that one" in capsys.readouterr().out
    assert same_weights(run / "final.pt", whole / "final.pt")
    assert [line["top_1"] for line in log(run)] == [line["top_1"] for line in log(whole)]


def test_a_data_set_made_anew_is_not_the_one_that_was_trained_on(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--logging.run=r")
    facts = json.loads((run / "params.json").read_text())["data_digests"]
    other = write_stock_beton(
        tmp_path / "train.beton", Samples(crops_of_photographs(96, 32, 34, 7), [i % 4 for i in range(96)]), "raw", 4
    )
    with pytest.raises(UserError, match=r"trained with another data\.train_dataset"):
        train((other, small_betons[1]), tmp_path, *RESUME)
    moved = tmp_path / "moved.beton"
    shutil.copy(small_betons[0], moved)
    shutil.copy(f"{small_betons[0]}.json", f"{moved}.json")
    assert train((moved, small_betons[1]), tmp_path, *RESUME) == run
    assert set(facts) == {"train", "val"} and facts["train"] != facts["val"]


def test_names_out_of_files_do_not_steer_the_terminal() -> None:
    error = UserError("class \x1b[31mred\x1b]0;title\x07 of für\udcff\n next line")
    assert str(error) == "class \\x1b[31mred\\x1b]0;title\\x07 of für\\udcff\n next line"


@pytest.mark.parametrize(("key", "value"), [("config", None), ("arch", None), ("class_names", 3)])
def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    state = load_checkpoint(old_run(tmp_path))
    state.pop(key) if value is None else state.update({key: value})
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt does not say what it is"):
        read_subject(str(tmp_path / "odd.pt"))
