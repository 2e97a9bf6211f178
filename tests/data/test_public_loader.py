"""The loader of other people's loops: defaults, iteration as PyTorch's users expect it, errors that name arguments."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_train import CenterCrop, Loader, RandomResizedCrop, UserError, open_data_set
from ffcv_train.data.loading import beton_loader
from tests.support.photographs import Samples

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_samples: Samples) -> Path:
    """The photographs as PNG files in a folder per class."""
    from PIL import Image

    root = tmp_path_factory.mktemp("folder")
    for index, (image, label) in enumerate(zip(photo_samples.images, photo_samples.labels, strict=True)):
        path = root / f"class{label}" / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def loader(data_set: Any, batch_size: int = 16, **arguments: Any) -> Loader:
    defaults: dict[str, Any] = {"crop": RandomResizedCrop(), "resolution": SIDE, "device": "cpu", "num_workers": 1}
    return Loader(data_set, batch_size, **{**defaults, **arguments})


def test_random_crops_come_in_random_order_and_centre_crops_in_the_files(raw_beton: Path) -> None:
    with loader(str(raw_beton)) as training, loader(raw_beton, crop=CenterCrop()) as validation:
        assert (len(training), len(validation)) == (67 // 16, 5)
        seen = torch.cat([batch.indices for batch in training])
        assert seen.tolist() != sorted(seen.tolist())
        assert torch.cat([indices for _, _, indices, _ in validation]).tolist() == list(range(67))


def test_equals_the_trainers_loader(raw_beton: Path) -> None:
    """The same batches to the last bit, for each of two epochs."""
    data_set = open_data_set(raw_beton)
    inner = beton_loader.BetonLoader(
        data_set, 16, crop=RandomResizedCrop(), resolution=SIDE, device=torch.device("cpu"), order="random",
        num_workers=2, seed=3,
    )  # fmt: skip
    with loader(data_set, seed=3) as ours:
        for epoch in (0, 1):
            inner.set_epoch(epoch)
            for mine, theirs in zip(ours, inner.epoch(), strict=True):
                assert torch.equal(mine.images, theirs.images)
                assert torch.equal(mine.indices, theirs.indices)
    inner.close()


@pytest.mark.parametrize("kind", ["beton", "folder"])
def test_every_iteration_is_the_next_epoch(kind: str, raw_beton: Path, folder: Path) -> None:
    with loader(folder if kind == "folder" else raw_beton) as ours:
        epochs = [torch.cat([batch.indices for batch in ours]) for _ in range(2)]
        assert not torch.equal(epochs[0], epochs[1])
        ours.set_epoch(0)
        assert torch.equal(torch.cat([batch.indices for batch in ours]), epochs[0])
        ours.set_epoch(1, first_batch=2)
        assert torch.equal(torch.cat([batch.indices for batch in ours]), epochs[1][32:])
        assert len(list(ours)) == len(ours)


@pytest.mark.parametrize("kind", ["beton", "folder"])
def test_a_new_iteration_ends_the_one_before(kind: str, raw_beton: Path, folder: Path) -> None:
    with loader(folder if kind == "folder" else raw_beton) as ours:
        first = iter(ours)
        next(first)
        assert len(list(ours)) == len(ours)
        with pytest.raises(RuntimeError, match="another iteration"):
            next(first)
        unused = iter(ours)
        assert len(list(ours)) == len(ours)
        with pytest.raises(RuntimeError, match="another iteration"):
            next(unused)
        for batch in itertools.islice(ours, 2):
            assert len(batch.labels) == 16
        assert len(list(ours)) == len(ours)


def test_every_format_gives_the_same_samples(raw_beton: Path, folder: Path) -> None:
    with loader(raw_beton, crop=CenterCrop()) as a, loader(folder, crop=CenterCrop()) as b:
        one, other = (
            {(int(label), bytes(image.numpy())) for batch in x for image, label in zip(*batch[:2], strict=True)}
            for x in (a, b)
        )
    assert len(one) == 67
    assert one == other


def test_ranks_share_the_samples(raw_beton: Path) -> None:
    seen: list[int] = []
    for rank in (0, 1):
        with loader(raw_beton, crop=CenterCrop(), rank=rank, world_size=2) as ours:
            seen += torch.cat([batch.indices for batch in ours]).tolist()
    assert sorted(seen) == list(range(67))


def test_repeats_and_resolution(raw_beton: Path) -> None:
    with loader(raw_beton, repeats=2) as ours:
        ours.set_resolution(24)
        batches = list(ours)
        assert {tuple(batch.images.shape) for batch in batches} == {(16, 3, 24, 24)}
        keys = np.concatenate([batch.keys for batch in batches])
        assert len(np.unique(keys)) == len(keys)
        assert len(np.unique(keys % 67)) == len(keys) // 2


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"device": "gpu"}, ValueError, "device"),
        ({"device": "mps"}, ValueError, "device"),
        ({"device": "cuda:9"}, ValueError, "device"),
        ({"order": "quasi"}, ValueError, "order"),
        ({"crop": 0.9}, TypeError, "crop"),
        ({"resolution": 0}, ValueError, "resolution"),
        ({"resolution": 32.0}, TypeError, "resolution"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"num_workers": 0}, ValueError, "num_workers"),
        ({"batches_ahead": 0}, ValueError, "batches_ahead"),
        ({"repeats": 2, "order": "sequential"}, ValueError, "repeats"),
        ({"cache": True}, ValueError, "cache"),
        ({"rank": 1}, ValueError, "rank and world_size"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank"),
        ({"batch_size": 68}, UserError, "lower batch_size"),
        ({"data_set": 3}, TypeError, "data_set"),
        ({"data_set": "nowhere.beton"}, UserError, "nowhere.beton"),
    ],
)
def test_wrong_arguments_are_named(
    raw_beton: Path, arguments: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name) as raised:
        loader(**{"data_set": raw_beton, **arguments})
    assert "--" not in str(raised.value)


def test_wrong_crops_are_named() -> None:
    for arguments, name in (({"scale": (1.0, 0.1)}, "scale"), ({"ratio": (0.0, 1.0)}, "ratio"), ({"flip": 2}, "flip")):
        with pytest.raises(ValueError, match=name):
            RandomResizedCrop(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interpolation must be bilinear or bicubic, not 'nearest'"):
        CenterCrop(interpolation="nearest")
    with pytest.raises(ValueError, match="ratio"):
        CenterCrop(1.5)


def test_quasi_random_order_is_for_betons(folder: Path) -> None:
    with pytest.raises(ValueError, match="order=quasi_random"):
        loader(folder, order="quasi_random")
    with pytest.raises(ValueError, match="format must be one of beton, zip, folder, or None, not 'tar'"):
        open_data_set(folder, "tar")


def test_errors_while_iterating_name_arguments(raw_beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loader(raw_beton) as ours:

        def failing() -> Any:
            raise UserError("too little memory; lower --data.num_workers, or run ffcv-train write --verify F")
            yield

        monkeypatch.setattr(ours._loader, "epoch", failing)
        with pytest.raises(UserError, match=re.escape("lower num_workers, or run ffcv-train write --verify F")):
            next(iter(ours))
