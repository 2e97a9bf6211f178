"""Splits and long tails: which images go where, as a function of the seed, and what the files then hold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ffcv_train.data.convert import write as write_module
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.write import WriteConfig, convert, validation_path
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.data.sources.selection import long_tail, stratified_split
from ffcv_train.system.errors import UserError
from tests.support.kills import InProcess, Killed, abandons_files, killed_at
from tests.support.photographs import crops_of_photographs

COUNTS = {"ape": 20, "bee": 11, "cat": 4, "dog": 1}


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    photographs = iter(crops_of_photographs(sum(COUNTS.values()), 20, 40))
    for name, count in COUNTS.items():
        (root / name).mkdir()
        for number in range(count):
            Image.fromarray(next(photographs)).save(root / name / f"{number:02d}.png")
    return root


def write(images: Path, path: Path, **options: object) -> Path:
    return convert(WriteConfig(data_dir=str(images), write_path=str(path), write_mode="raw", num_workers=1, **options))


def files(path: Path) -> list[str]:
    sidecar = open_beton(path).sidecar
    assert sidecar is not None
    return list(sidecar["files"])


# The choice


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 10),
)
@settings(max_examples=100, deadline=None)
def test_each_class_gives_its_share(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, validation = stratified_split(labels, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert np.array_equal(train, np.sort(train)) and np.array_equal(validation, np.sort(validation))
    for label, count in enumerate(counts):
        held_out = int((labels[validation] == label).sum())
        assert held_out == (0 if count < 2 else min(max(round(fraction * count), 1), count - 1))


def test_the_seed_decides_and_classes_do_not_matter_to_each_other() -> None:
    labels = np.repeat([0, 1], 50)
    splits = [stratified_split(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    alone = stratified_split(labels[:50], 0.2, 0)[1].tolist()
    assert alone == [index for index in splits[0] if index < 50]


@given(seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_copies_stay_together(seed: int) -> None:
    labels = np.repeat([0, 1, 2], 20)
    same = [[0, 5], [3, 25, 45], [7, 8, 9, 10]]
    _, validation = stratified_split(labels, 0.3, seed, same)
    for group in same:
        assert len(set(group) & set(validation.tolist())) in (0, len(group))


def test_a_long_tail_is_that_of_the_literature() -> None:
    """CIFAR-10-LT at 100, as LDAM's code prints it (github.com/kaidic/LDAM-DRW)."""
    labels = np.repeat(np.arange(10), 5000)
    kept = long_tail(labels, 10, 100, 0)
    expected = [int(5000 * 0.01 ** (k / 9)) for k in range(10)]
    assert expected == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert np.bincount(labels[kept]).tolist() == expected
    assert np.array_equal(kept, np.unique(kept))
    assert np.array_equal(kept, long_tail(labels, 10, 100, 0)) and not np.array_equal(
        kept, long_tail(labels, 10, 100, 1)
    )


def test_a_long_tail_takes_no_more_than_there_is() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 2, 100, 1])
    assert np.bincount(labels[long_tail(labels, 4, 1000, 0)]).tolist() == [100, 2, 1, 1]


# The files


def test_a_folder_without_a_split_becomes_two_files(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(images, tmp_path / "train.beton", val_fraction=0.25)
    text = capsys.readouterr().out
    validation = tmp_path / "val.beton"
    assert f"{train}: 27 samples" in text and f"{validation}: 9 samples" in text
    assert "note: 1 classes have no image for validation" in text
    assert sorted(files(train) + files(validation)) == sorted(str(p.relative_to(images)) for p in images.glob("*/*"))
    assert np.bincount(open_beton(validation).labels, minlength=4).tolist() == [5, 3, 1, 0]
    for path, split in ((train, "train"), (validation, "val")):
        beton = open_beton(path)
        assert beton.class_names == tuple(COUNTS) and beton.sidecar is not None
        assert beton.sidecar["split"] == split and beton.sidecar["source"]["num_images"] == 36
        assert [name.split("/")[0] for name in files(path)] == [beton.class_names[label] for label in beton.labels]
        verify(path)
        data = path.read_bytes()
        for index, name in enumerate(files(path)):
            start, size = int(beton.ptrs[index]), int(beton.sizes[index])
            assert data[start : start + size] == np.asarray(Image.open(images / name)).tobytes()
    again = write(images, tmp_path / "again_train.beton", val_fraction=0.25, chunk_size=1)
    assert again.read_bytes() == train.read_bytes()
    assert (tmp_path / "again_val.beton").read_bytes() == validation.read_bytes()


def test_a_split_that_is_there_already_is_left_alone_and_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "both" / "val").mkdir(parents=True)
    (tmp_path / "both" / "train").symlink_to(images)
    for folder in ("both", "both/train"):
        write(tmp_path / folder, tmp_path / "train.beton", val_fraction=0.25)
        said = (
            f"note: {tmp_path}/both/val is left alone; --cfg.val_fraction takes its images from {tmp_path}/both/train"
        )
        assert said in capsys.readouterr().out
    write(tmp_path / "both", tmp_path / "train.beton")
    assert "is left alone" not in capsys.readouterr().out


def test_where_the_second_file_goes() -> None:
    for path, expected in (("d/train.beton", "d/val.beton"), ("my_train_500.beton", "my_val_500.beton")):
        assert validation_path(Path(path)) == Path(expected)
    assert validation_path(Path("trains/flowers.beton")) == Path("trains/flowers_val.beton")


def test_copies_of_an_image_are_never_on_both_sides(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(images, folder)
    for number in range(20):
        shutil.copy(folder / "ape" / f"{number:02d}.png", folder / "ape" / f"copy{number:02d}.png")
    shutil.copy(folder / "ape" / "00.png", folder / "bee" / "same.png")
    for seed in range(4):
        train = write(folder, tmp_path / "train.beton", val_fraction=0.5, seed=seed)
        assert "note: 21 images are copies of others" in capsys.readouterr().out
        contents = [{(folder / name).read_bytes() for name in files(path)} for path in (train, tmp_path / "val.beton")]
        assert not contents[0] & contents[1]


def test_an_archive_is_split_too(images: Path, tmp_path: Path) -> None:
    make_zips(images, tmp_path, "train")
    write(tmp_path, tmp_path / "train.beton", val_fraction=0.25, dataset="zip")
    of_folder = write(images, tmp_path / "folder_train.beton", val_fraction=0.25)
    assert files(tmp_path / "train.beton") == files(of_folder)


def test_a_long_tail_and_a_split(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tail is made of what is kept for training; validation stays as it is."""
    train = write(images, tmp_path / "train.beton", val_fraction=0.25, imbalance=10)
    assert "a long tail of 25 images, 15 of ape to 1 of dog" in capsys.readouterr().out
    assert np.bincount(open_beton(train).labels).tolist() == [15, 6, 3, 1]
    assert np.bincount(open_beton(tmp_path / "val.beton").labels).tolist() == [5, 3, 1]
    sidecar = json.loads(sidecar_path(train).read_text())
    assert sidecar["settings"]["imbalance"] == 10 and sidecar["settings"]["val_fraction"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 0}, r"--cfg\.subset=0 would write no images"),
        ({"subset": 5, "val_fraction": 0.1}, "leave one out"),
        ({"subset": 5, "imbalance": 10}, "leave one out"),
        ({"val_fraction": 0.1, "split": "val"}, "leave --cfg.split out"),
    ],
)
def test_what_does_not_go_together(images: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(images, tmp_path / "train.beton", **options)
    assert not list(tmp_path.iterdir())


def test_lone_images_cannot_be_split(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "dog", tmp_path / "images" / "dog")
    with pytest.raises(UserError, match=r"no class of .* has two images"):
        write(tmp_path / "images", tmp_path / "train.beton", val_fraction=0.5)


@abandons_files
def test_two_files_are_of_one_split_wherever_it_is_killed(images: Path, tmp_path: Path) -> None:
    """Files of two seeds share images: what can be read is of one seed, or it is refused."""
    sets = {}
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write(images, tmp_path / str(seed) / "train.beton", val_fraction=0.5, seed=seed)
        sets[seed] = [files(tmp_path / str(seed) / f"{split}.beton") for split in ("train", "val")]
    out = tmp_path / "out"
    seen = set()
    for point in range(1, 60):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "0", out)
        died: list[str] = []
        try:
            with killed_at(point) as died:
                write(images, out / "train.beton", val_fraction=0.5, seed=1)
        except Killed:
            pass
        if not died:
            break
        try:
            now = [files(out / f"{split}.beton") for split in ("train", "val")]
        except UserError:
            seen.add("refused")
        else:
            assert now in list(sets.values())
            seen.add(now == sets[1])
        if point % 4 == 0:
            write(images, out / "train.beton", val_fraction=0.5, seed=1)
            assert [files(out / f"{split}.beton") for split in ("train", "val")] == sets[1]
            assert sorted(file.name for file in out.iterdir()) == sorted(
                f"{split}.beton{end}" for split in ("train", "val") for end in ("", ".json")
            )
    assert point > 15 and seen == {True, False, "refused"}
