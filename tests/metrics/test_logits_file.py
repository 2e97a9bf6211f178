"""The file of logits: what is read is what was written, in any order; a failure leaves no file; foreign files."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ffcv_train.metrics import logits_file
from ffcv_train.metrics.logits_file import RowBuffer, create_logits, fill_rows, read_logits, row_blocks
from ffcv_train.system.errors import UserError
from tests.support.photographs import ROOT


def rows(count: int, classes: int = 4, width: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(count, classes, generator=generator),
        "labels": torch.randint(0, classes, (count,), generator=generator),
        "features": torch.randn(count, width, generator=generator),
    }


def test_round_trip_in_any_order(tmp_path: Path) -> None:
    values, path = rows(100), tmp_path / "L.pt"
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4)
    names = tuple("abcd")
    settings: dict[str, Any] = {"about": {"data_set": "somewhere/val.beton"}, "class_names": names}
    with create_logits(path, rows=100, classes=4, features=6, weight=weight, bias=bias, **settings) as temporary:
        buffer = RowBuffer(temporary, limit=700)
        for positions in torch.randperm(100, generator=torch.Generator().manual_seed(1)).split(7):
            buffer.add(positions, {key: value[positions] for key, value in values.items()})
        buffer.flush()
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["L.pt"]
    found = read_logits(path)
    for key, value in values.items():
        assert torch.equal(getattr(found, key), value)
    assert torch.equal(found.indices, torch.arange(100))
    assert torch.equal(found.weight, weight.float())
    assert torch.equal(found.bias, bias)
    assert (found.class_names, found.data_set, len(found), found.num_classes) == (names, "val.beton", 100, 4)
    # An ordinary file of torch.save, also without mapping it.
    plain = torch.load(path, weights_only=True)
    assert torch.equal(plain["logits"], values["logits"])
    assert plain["logits"].dtype == torch.float32
    assert path.stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_was_not_asked_for_is_missed_by_name(tmp_path: Path) -> None:
    with create_logits(tmp_path / "L.pt", rows=2, classes=2, about={}) as temporary:
        fill_rows(temporary, torch.arange(2), {"logits": torch.ones(2, 2), "labels": torch.tensor([0, 1])})
    found = read_logits(tmp_path / "L.pt")
    assert found.features is found.weight is found.class_names is None
    with pytest.raises(UserError, match=r"L\.pt holds no features; .*--features"):
        found.need_features()
    with pytest.raises(UserError, match="holds no last layer"):
        found.need_weight()


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "L.pt"
    path.write_text("old")
    with pytest.raises(RuntimeError), create_logits(path, rows=5, classes=3, features=2, about={}):
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["L.pt"]
    assert path.read_text() == "old"


def test_a_disk_too_small_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError, match=r"L\.pt needs \d+\.\d GiB, and its disk has"),
        create_logits(tmp_path / "L.pt", rows=1 << 30, classes=1 << 12, about={}),
    ):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(logits_file.os, "posix_fallocate", _refuse)
    with pytest.raises(UserError, match="No space left"), create_logits(tmp_path / "L.pt", rows=9, classes=2, about={}):
        pass
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(UserError, match="cannot write"),
        create_logits(tmp_path / "no" / "L", rows=9, classes=2, about={}),
    ):
        pass


def _refuse(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_writing_needs_little_memory(tmp_path: Path) -> None:
    program = f"""
import resource, torch
from pathlib import Path
from ffcv_train.metrics.logits_file import RowBuffer, create_logits
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with create_logits(Path({str(tmp_path)!r}) / "L.pt", rows=40_000, classes=10, features=2048, about={{}}) as temporary:
    buffer = RowBuffer(temporary, limit=8 << 20)
    for positions in torch.arange(40_000).split(500):
        batch = {{"logits": torch.ones(500, 10), "labels": torch.zeros(500).long(), "features": torch.ones(500, 2048)}}
        buffer.add(positions, batch)
    buffer.flush()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "L.pt").stat().st_size > 300 << 20
    assert int(answer.stdout) < 100 << 10  # KiB


def test_files_of_logits_and_labels_alone(tmp_path: Path) -> None:
    torch.save({"logits": torch.randn(5, 3).half(), "labels": torch.tensor([0, 1, 2, 1, 0])}, tmp_path / "L.pt")
    found = read_logits(tmp_path / "L.pt")
    assert (len(found), found.num_classes, found.class_names, found.data_set) == (5, 3, None, "")


class Trap:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("sprung"),))


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "L.pt"
    with pytest.raises(UserError, match="does not exist"):
        read_logits(path)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not a file of"):
        read_logits(path)
    path.write_bytes(pickle.dumps({"logits": Trap()}))
    with pytest.raises(UserError, match="is not a file of"):
        read_logits(path)
    torch.save({"logits": Trap()}, path)
    with pytest.raises(UserError, match="is not a file of"):
        read_logits(path)
    assert not (tmp_path / "sprung").exists()
    good = {"logits": torch.randn(4, 3), "labels": torch.tensor([0, 1, 2, 0])}
    for change, message in (
        ({"labels": None}, "holds no logits with labels"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, "labels beyond its 3 logits"),
        ({"labels": torch.tensor([0, 1, 2])}, r"not \[N, K\] and \[N\]"),
        ({"logits": torch.randn(4)}, r"not \[N, K\] and \[N\]"),
        ({"features": torch.randn(3, 2)}, "do not fit together"),
        ({"last_layer": {"weight": torch.randn(4, 2), "bias": None}}, "do not fit together"),
        ({"class_names": ["a", "b"]}, "do not fit together"),
    ):
        torch.save({**good, **change}, path)
        with pytest.raises(UserError, match=message):
            read_logits(path)


def test_blocks_cover_every_row_once() -> None:
    for count, columns in ((10, 3), (1000, 1 << 20), (7, 1)):
        covered = [i for rows in row_blocks(count, columns, limit=1 << 10) for i in range(rows.start, rows.stop)]
        assert covered == list(range(count))
