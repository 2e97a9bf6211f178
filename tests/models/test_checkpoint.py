import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ffcv_train.models import checkpoint
from ffcv_train.system.errors import UserError


class Exploit:
    def __reduce__(self) -> tuple:
        return os.system, ("touch exploited",)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    checkpoint.save_checkpoint({"model": model.state_dict(), "epoch": 4, "names": ["a", "ü"]}, tmp_path / "c.pt")
    state = checkpoint.load_checkpoint(tmp_path / "c.pt")
    assert state["epoch"] == 4 and state["names"] == ["a", "ü"]
    assert torch.equal(state["model"]["weight"], model.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save_checkpoint({"model": {}, "epoch": 1}, path)

    def full_disk(state: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save_checkpoint({"model": {}, "epoch": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load_checkpoint(path)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_nothing_from_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"format": 1, "model": Exploit()}))
    torch.save({"format": 1, "model": Exploit()}, tmp_path / "evil.pt")
    for name in ("evil.pkl", "evil.pt"):
        with pytest.raises(UserError, match="damaged or not a PyTorch checkpoint"):
            checkpoint.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save_checkpoint({"model": nn.Linear(30, 30).state_dict()}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"c\.pt"):
        checkpoint.load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="not a checkpoint of this trainer"):
        checkpoint.load_checkpoint(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_checkpoint(tmp_path / "absent.pt")


def test_unwrap_finds_the_model_whose_weights_are_saved() -> None:
    model = nn.Linear(2, 2)
    assert checkpoint.unwrap(model) is model
    assert checkpoint.unwrap(torch.compile(model, backend="eager")) is model  # type: ignore[arg-type]
