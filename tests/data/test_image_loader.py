"""Training from zip archives and folders: the same crops as from a .beton, faults named by line, the cache shared."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import AugmentConfig, RunConfig
from ffcv_train.data.classes import check_labels
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import Beton, open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.loading import archive_cache
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.data.loading.image_workers import _worker_ends
from ffcv_train.data.open import open_data_set, val_loader
from ffcv_train.data.sources.image_set import ImageSet, Places, open_image_set
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Trainer
from tests.support.limits import no_hang
from tests.support.photographs import ROOT, crops_of_photographs
from tests.support.runs import ALONE, free_port, log, run_here, run_script, same_weights

CROP = RandomResizedCrop((0.3, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training and 13 validation photographs of three classes as a folder, zips, and .beton files of raw pixels."""
    root = tmp_path_factory.mktemp("sets")
    for split, count in (("train", 30), ("val", 13)):
        for number, pixels in enumerate(crops_of_photographs(count, 34, 90, seed=len(split))):
            path = root / "folder" / split / ("ant", "bee", "cow")[number % 3] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=92)
    make_zips(root / "folder", root)
    for split in ("train", "val"):
        settings = {"data_dir": str(root / "folder"), "write_path": str(root / f"{split}.beton")}
        convert(WriteConfig(split=split, write_mode="raw", num_workers=1, **settings))
    return root


def path_of(sets: Path, kind: str, split: str) -> str:
    return str(
        {"beton": sets / f"{split}.beton", "zip": sets / f"{split}.zip", "folder": sets / "folder" / split}[kind]
    )


def process(rank: int = 0, world_size: int = 1) -> Process:
    return Process(rank, world_size, rank, world_size, torch.device("cpu"))


def image_loader(
    images: ImageSet, training: bool = True, workers: int = 1, rank: int = 0, ranks: int = 1, **more: object
):
    """A loader of batches of 4."""
    augment = more.pop("augment", AugmentConfig()) if training else None
    crop = CROP if training else CenterCrop(0.9)
    options = {"process": process(rank, ranks), "num_workers": workers, "seed": 3, "resolution": 24, **more}
    return ImageLoader(images, 4, crop=crop, augment=augment, **options)  # type: ignore[arg-type]


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.indices, y.indices)
        and np.array_equal(x.keys, y.keys)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_batches_equal_those_of_a_beton(sets: Path, kind: str) -> None:
    beton, images = open_beton(sets / "train.beton"), open_data_set(path_of(sets, kind, "train"), kind)
    assert isinstance(images, ImageSet)
    assert images.class_names == beton.class_names and np.array_equal(images.labels, beton.labels)
    common = {"resolution": 24, "seed": 3}
    with contextlib.ExitStack() as stack:
        for repeats, rank, ranks in ((1, 0, 1), (3, 0, 1), (1, 1, 2), (3, 1, 2)):
            theirs = BetonLoader(
                *(beton, 4),
                **{"crop": CROP, "device": torch.device("cpu"), "order": "random", "num_workers": 1, **common},
                repeats=repeats,
                rank=rank,
                world_size=ranks,
            )
            ours = image_loader(images, rank=rank, ranks=ranks, augment=AugmentConfig(repeats=repeats))
            stack.callback(theirs.close)
            stack.callback(ours.close)
            for epoch, first, side in ((0, 0, 24), (5, 2, 32), (5, 0, 24)):
                for loader in (ours, theirs):
                    loader.set_epoch(epoch, first)
                    loader.set_resolution(side)
                found = list(ours.epoch())
                assert equal(found, list(theirs.epoch())) and len(found) == len(ours) - first == len(theirs) - first
                assert found[0].images.shape == (4, 3, side, side)
                assert found[0].images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("ranks", [1, 3])
def test_validation_sees_every_image_once(sets: Path, ranks: int) -> None:
    beton, images = open_beton(sets / "val.beton"), open_image_set(sets / "val.zip", "zip")
    # The archive holds val/FILE, so its order and the folder's are the same here.
    seen = []
    for rank in range(ranks):
        ours = image_loader(images, training=False, workers=2, rank=rank, ranks=ranks)
        theirs = BetonLoader(
            *(beton, 4),
            crop=CenterCrop(0.9),
            device=torch.device("cpu"),
            order="sequential",
            num_workers=1,
            resolution=24,
            rank=rank,
            world_size=ranks,
        )
        with contextlib.closing(ours), contextlib.closing(theirs):
            found = list(ours.epoch())
            assert equal(found, list(theirs.epoch())) and len(found) == len(ours)
        seen += [int(index) for batch in found for index in batch.indices]
    assert sorted(seen) == list(range(13))


@pytest.mark.parametrize(("side", "ratio"), [(32, 0.9), (40, 0.875), (21, 1.0)])
@pytest.mark.parametrize("kind", ["beton", "zip", "folder"])
def test_evaluation_sees_torchvisions_resize_and_centre_crop(sets: Path, kind: str, side: int, ratio: float) -> None:
    config = load_config(
        RunConfig, [f"--validation.crop_ratio={ratio}", "--validation.batch_size=13", "--data.num_workers=1"]
    )
    with contextlib.closing(val_loader(config, open_data_set(path_of(sets, kind, "val"), kind), side, ALONE)) as loader:
        (batch,) = list(loader.epoch())
    files = sorted((sets / "folder" / "val").glob("*/*.jpg"))
    steps = transforms.Compose([transforms.Resize(int(side / ratio)), transforms.CenterCrop(side)])
    expected = [np.asarray(steps(Image.open(file)), float) for file in files]
    found = batch.images.permute(0, 2, 3, 1).numpy()
    differences = np.abs(found - np.stack(expected)).mean(axis=(1, 2, 3))
    assert differences.mean() <= 0.5 and differences.max() <= 1.5


@pytest.mark.parametrize("kind", ["beton", "zip"])
def test_evaluation_sees_the_crop_that_is_asked_for(sets: Path, kind: str) -> None:
    words = ["--validation.crop=ffcv", "--validation.crop_ratio=0.8", "--validation.interpolation=bicubic"]
    config = load_config(RunConfig, [*words, "--validation.batch_size=13", "--data.num_workers=1"])
    with contextlib.closing(val_loader(config, open_data_set(path_of(sets, kind, "val"), kind), 24, ALONE)) as loader:
        (found,) = list(loader.epoch())
    given = {"resolution": 24, "device": torch.device("cpu"), "order": "sequential", "num_workers": 1}
    others = []
    for crop in (CenterCrop(0.8, "bicubic", "ffcv"), CenterCrop(0.8, "bicubic"), CenterCrop(0.8, "bilinear", "ffcv")):
        with contextlib.closing(BetonLoader(open_beton(sets / "val.beton"), 13, crop=crop, **given)) as loader:
            others.append(next(loader.epoch()).images.clone())
    assert [torch.equal(found.images, other) for other in others] == [True, False, False]


@pytest.mark.parametrize("policy", ["rand_augment", "three_augment", "trivial_augment", "auto_augment", "augmix"])
def test_the_policy_does_not_depend_on_the_workers(sets: Path, policy: str) -> None:
    images = open_image_set(sets / "train.zip", "zip")
    config = AugmentConfig(policy=policy)
    epochs = []
    for workers in (1, 2):
        with contextlib.closing(image_loader(images, workers=workers, augment=config)) as loader:
            epochs.append(list(loader.epoch()))
            loader.set_epoch(1)
            other = list(loader.epoch())
    assert equal(*epochs) and not equal(epochs[0], other)
    with contextlib.closing(image_loader(images)) as loader:
        plain = list(loader.epoch())
    changed = [bool((a.images != b.images).any()) for a, b in zip(plain, epochs[0], strict=True)]
    assert all(changed)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_places_are_the_sources(sets: Path, kind: str) -> None:
    for split in ("train", "val"):
        images = open_image_set(path_of(sets, kind, split), kind)
        places = Places(images.source)
        assert [places[index] for index in range(len(images))] == [images.source.place(i) for i in range(len(images))]


def test_a_digest_tells_other_images_and_labels_from_a_copy(sets: Path, tmp_path: Path) -> None:
    """By which ranks are compared, and a run with the one that it continues."""
    copy, map_file = tmp_path / "val.zip", tmp_path / "val_map.txt"
    shutil.copy(sets / "val_map.txt", map_file)
    shutil.copy(sets / "val.zip", copy)
    shutil.copy(sets / "classes.txt", tmp_path)
    own = open_image_set(sets / "val.zip", "zip").digest()
    assert open_image_set(copy, "zip").digest() == own
    with zipfile.ZipFile(sets / "val.zip") as source, zipfile.ZipFile(copy, "w") as target:
        for number, name in enumerate(source.namelist()):
            target.writestr(name, source.read(name) + b"\0" * (number == 5))
    assert open_image_set(copy, "zip").digest() != own
    shutil.copy(sets / "val.zip", copy)
    lines = map_file.read_text().splitlines()
    map_file.write_text("\n".join([*lines[:-1], lines[-1][:-1] + "0"]))
    assert open_image_set(copy, "zip").digest() != own
    folder = shutil.copytree(sets / "folder" / "val", tmp_path / "val")
    before = open_image_set(folder, "folder").digest()
    assert before == open_image_set(sets / "folder" / "val", "folder").digest()
    first = next(iter(sorted(folder.rglob("*.jpg"))))
    first.rename(first.with_name("zebra.jpg"))
    assert open_image_set(folder, "folder").digest() != before


def test_leaving_early_and_starting_again(sets: Path) -> None:
    images = open_image_set(sets / "folder/train", "folder")
    with contextlib.closing(image_loader(images, workers=2)) as loader:
        whole = list(loader.epoch())
        for _ in range(3):
            early = loader.epoch()
            next(early)
            with pytest.raises(RuntimeError, match="being iterated already"):
                next(loader.epoch())
            early.close()
        assert equal(list(loader.epoch()), whole)
        state = torch.get_rng_state()
        list(loader.epoch())
        assert torch.equal(torch.get_rng_state(), state), "the trainer's generator was moved"


def damaged(sets: Path, tmp_path: Path, name: str = "train") -> tuple[Path, Path]:
    for file in (f"{name}.zip", f"{name}_map.txt"):
        shutil.copy(sets / file, tmp_path / file)
    return tmp_path / f"{name}.zip", tmp_path / f"{name}_map.txt"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def name_classes(archive: Path, names: str) -> None:
    archive.with_name("classes.txt").write_text(names.replace(" ", "\n"))


def test_a_label_beyond_the_named_classes(sets: Path, tmp_path: Path) -> None:
    archive, listed = damaged(sets, tmp_path)
    name_classes(archive, "ant bee cow")
    assert open_image_set(archive, "zip").class_names == ("ant", "bee", "cow")
    edit(listed, "bee/01.jpg\t1", "bee/01.jpg\t7")
    with pytest.raises(UserError, match=r"line 11 of .*train_map\.txt has the label 7, but 3 classes are named"):
        open_image_set(archive, "zip")


def test_labels_without_names_are_checked_against_the_model(sets: Path, tmp_path: Path) -> None:
    archive, listed = damaged(sets, tmp_path, "val")
    edit(listed, "\t2", "\t9")
    images = open_image_set(archive, "zip")
    assert images.class_names is None
    with pytest.raises(UserError, match=r"\(line \d+ of .*val_map\.txt\) in .* has the label 9, but the model has 3"):
        check_labels(images, 3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda archive, listed: archive.unlink(), r"train\.zip does not exist"),
        (lambda archive, listed: listed.unlink(), r"train_map\.txt does not exist"),
        (lambda archive, listed: archive.write_bytes(archive.read_bytes()[:-900]), r"train\.zip.*is it complete\?"),
        (lambda archive, listed: archive.write_bytes(b""), r"train\.zip.*is it complete\?"),
        (lambda archive, listed: edit(listed, "bee/01.jpg\t1", "bee/01.jpg 1"), r"line 11 of .*train_map\.txt is not"),
        (
            lambda archive, listed: edit(listed, "bee/01.jpg\t1", "bee/01.jpg\t-1"),
            r"line 11 of .*train_map\.txt is not",
        ),
        (lambda archive, listed: edit(listed, "bee/01.jpg", "bee/99.jpg"), r"line 11 of .* lists bee/99\.jpg, which"),
        (lambda archive, listed: listed.write_text(""), "lists no images"),
        (
            lambda archive, listed: name_classes(archive, "ant bee"),
            r"line 21 of .*train_map\.txt has the label 2, but 2",
        ),
    ],
)
def test_faults_of_archives_and_maps(sets: Path, tmp_path: Path, fault: object, message: str) -> None:
    archive, listed = damaged(sets, tmp_path)
    fault(archive, listed)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        open_image_set(archive, "zip")


def test_an_encrypted_archive_is_refused(sets: Path, tmp_path: Path) -> None:
    archive, _ = damaged(sets, tmp_path)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # of the first entry in the archive's directory: encrypted
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        open_image_set(archive, "zip")


@pytest.mark.parametrize(("place", "value"), [(6, 90), (8, 0x808)])
def test_an_odd_directory_is_a_sentence(tmp_path: Path, place: int, value: int) -> None:
    """A format of the future; a name that is said to be UTF-8 and is not."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("xx.jpg", b"content")
    raw = bytearray(archive.read_bytes().replace(b"xx.jpg", b"\xff\xfe.jpg"))
    start = raw.find(b"PK\x01\x02") + place
    raw[start : start + 2] = value.to_bytes(2, "little")
    archive.write_bytes(raw)
    (tmp_path / "a_map.txt").write_text("xx.jpg\t0\n")
    with pytest.raises(UserError, match="cannot read the archive"):
        open_image_set(archive, "zip")


def test_a_folder_of_all_images_names_no_class(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as content:
        for name in "ab":
            content.writestr(f"val/{name}.jpg", b"content")
    (tmp_path / "val_map.txt").write_text("val/a.jpg\t0\nval/b.jpg\t1\n")
    assert open_image_set(tmp_path / "val.zip", "zip").class_names is None


def test_a_fault_in_a_living_worker_is_not_a_death() -> None:
    with pytest.raises(RuntimeError, match="the real reason"), _worker_ends():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nthe real reason")


def test_a_folder_or_zip_of_the_wrong_kind(sets: Path, tmp_path: Path) -> None:
    for path, kind, message in (
        (sets / "train.zip", "folder", "is not a folder"),
        (sets / "nowhere", "folder", "does not exist"),
        (sets / "folder", "zip", r"is no \.zip file"),
        (sets / "train.beton", "zip", r"is no \.zip file"),
        (tmp_path, "folder", "holds no class folders; put the images of each class into a folder of its name, there"),
        (sets / "folder", "folder", "holds several splits; name one of them"),
    ):
        with pytest.raises(UserError, match=message):
            open_image_set(path, kind)


@pytest.mark.parametrize("kind", ["beton", "zip", "folder"])
def test_a_file_named_beton_is_one(sets: Path, tmp_path: Path, kind: str) -> None:
    assert isinstance(open_data_set(str(sets / "train.beton"), kind), Beton)
    options = script_options(sets, tmp_path, "beton", f"--data.format={kind}", "--augment.policy=rand_augment")
    trainer = Trainer(load_config(RunConfig, options), process())
    assert trainer.learner.augment.on_device


@pytest.mark.parametrize(("kind", "split"), [("zip", "train"), ("folder", "val")])
def test_images_given_as_a_beton_are_told_apart(sets: Path, kind: str, split: str) -> None:
    with pytest.raises(UserError, match=f"pass --data.format={kind} to read it as it is, or convert"):
        open_data_set(path_of(sets, kind, split), "beton")


@pytest.mark.parametrize("content", [b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_an_undecodable_image_is_named_with_its_line(sets: Path, tmp_path: Path, content: bytes) -> None:
    damaged(sets, tmp_path)
    with zipfile.ZipFile(sets / "train.zip") as whole, zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, content if name.endswith("bee/04.jpg") else whole.read(name))
    named = r"bee/04\.jpg \(line 12 of .*train_map\.txt\) in .*train\.zip cannot be read"
    with pytest.raises(UserError, match=named):
        read_all(tmp_path / "train.zip")
    flipped = bytearray((sets / "train.zip").read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (tmp_path / "train.zip").write_bytes(flipped)
    with pytest.raises(UserError, match=r"\(line \d+ of .* cannot be read: .*its checksum does not fit"):
        read_all(tmp_path / "train.zip")


def test_a_named_pipe_is_no_image(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets / "folder", tmp_path / "folder")
    (tmp_path / "folder/train/bee/04.jpg").unlink()
    os.mkfifo(tmp_path / "folder/train/bee/04.jpg")
    images = open_image_set(tmp_path / "folder/train", "folder")
    refused = pytest.raises(UserError, match=r"bee/04\.jpg in .* cannot be read: it is a named pipe, not a file")
    with contextlib.closing(image_loader(images)) as loader, no_hang(), refused:
        list(loader.epoch())


def read_all(archive: Path) -> list[Batch]:
    with contextlib.closing(image_loader(open_image_set(archive, "zip"))) as loader:
        return list(loader.epoch())


def test_a_killed_worker_is_a_sentence(sets: Path) -> None:
    images = open_image_set(sets / "train.zip", "zip")
    with contextlib.closing(image_loader(images, workers=2)) as loader:
        next(batches := loader.epoch())
        iterator = loader._workers._iterator
        assert iterator is not None
        os.kill(iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="a worker process of the loader has ended"):
            for epoch in range(1, 9):
                list(batches)
                loader.set_epoch(epoch)
                batches = loader.epoch()


def test_the_cache_gives_the_same_and_leaves_nothing(sets: Path) -> None:
    images = open_image_set(sets / "train.zip", "zip")
    with contextlib.closing(image_loader(images)) as plain:
        expected = list(plain.epoch())
    loader = image_loader(images, cache=True, workers=2)
    assert loader._cache is not None and Path(loader._cache.path).stat().st_size == (sets / "train.zip").stat().st_size
    assert len(memory_file_inodes(psutil.Process(), "train.zip")) == 1
    assert equal(list(loader.epoch()), expected)
    loader.close()
    assert memory_file_inodes(psutil.Process(), "train.zip") == []


def test_a_cache_that_does_not_fit_is_refused(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_cache, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"train with --data\.cache=0"):
        image_loader(open_image_set(sets / "train.zip", "zip"), cache=True)


CACHE_PROGRAM = """
import sys, time, torch
from pathlib import Path
from ffcv_train.data.loading.archive_cache import ArchiveCache
from ffcv_train.system.distributed import process_group
with process_group("cpu") as process:
    torch.distributed.barrier()
    cache = ArchiveCache(Path(sys.argv[1]), process)
    import os
    for worker in range(2):
        if os.fork() == 0:
            with open(cache.path, "rb") as file:
                assert file.read(9) == b"beginning"
                while file.read(1 << 20): pass
            Path(sys.argv[1]).with_name(f"read{2 * process.rank + worker}").touch()
            time.sleep(600)
    time.sleep(600)
"""


SLOW_PROGRAM = """
import datetime, sys, time, torch
from pathlib import Path
from ffcv_train.data.loading import archive_cache
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
rank, failing = int(sys.argv[1]), sys.argv[4] == "1"
store = torch.distributed.TCPStore("127.0.0.1", int(sys.argv[2]), 2, rank == 0, datetime.timedelta(seconds=240))
store.set(f"here{rank}", "")
store.wait([f"here{other}" for other in range(2)])  # one may take far longer than the other to start
torch.distributed.init_process_group(
    "gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=3)
)
load = archive_cache._load
def slow(archive, process):
    time.sleep(6)
    if failing:
        raise UserError("it does not fit")
    return load(archive, process)
archive_cache._load = slow
try:
    cache = archive_cache.ArchiveCache(Path(sys.argv[3]), Process(rank, 2, rank, 2, torch.device("cpu")))
    print(Path(cache.path).read_bytes().decode())
except UserError as error:
    print(error)
torch.distributed.barrier()
"""


@pytest.mark.parametrize("failing", [False, True])
def test_a_slow_disk_outlasts_no_collective(tmp_path: Path, failing: bool) -> None:
    """Reading takes twice as long as one operation of the ranks may."""
    (tmp_path / "a.zip").write_bytes(b"content")
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW_PROGRAM, str(rank), str(port), str(tmp_path / "a.zip"), str(int(failing))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0].strip() for process in ranks]
    assert said == (["it does not fit"] * 2 if failing else ["content"] * 2)


def test_ranks_and_workers_share_one_copy(tmp_path: Path) -> None:
    """Two ranks with two workers each hold one archive between them; it is gone when they are killed."""
    archive, size = tmp_path / "a.zip", 256 << 20
    with archive.open("wb") as file:
        file.write(b"beginning")
        file.truncate(size)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    (tmp_path / "program.py").write_text(CACHE_PROGRAM)
    launcher = subprocess.Popen(
        [*command, str(tmp_path / "program.py"), str(archive)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    processes: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 240
        while not all((tmp_path / f"read{number}").exists() for number in range(4)):
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        processes = psutil.Process(launcher.pid).children(recursive=True)
        assert len(processes) == 6
        found = [inode for process in processes for inode in memory_file_inodes(process, "a.zip")]
        assert len(found) == 6 and len(set(found)) == 1, "all have it open, and it is one"
        own = sorted(process.memory_full_info().uss for process in processes)
        assert own[3] < 0.5 * size, "workers hold no copy"
        assert own[5] - own[4] < 0.5 * size, "nor does one of the ranks"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()
    assert psutil.wait_procs(processes, timeout=120)[1] == []
    assert not any(memory_file_inodes(process, "a.zip") for process in psutil.process_iter())


def memory_file_inodes(process: psutil.Process, name: str) -> list[int]:
    """The anonymous memory files of that name that a process has open."""
    inodes = []
    with contextlib.suppress(OSError, psutil.Error):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if f"memfd:{name}" in str(entry.readlink()):
                    inodes.append(entry.stat().st_ino)
    return inodes


def script_options(sets: Path, folder: Path, kind: str, *more: str) -> list[str]:
    return [
        *("--model.arch=cifar_resnet20", f"--data.format={kind}", "--data.num_workers=1", "--data.crop_scale=0.35,1"),
        f"--data.train_dataset={path_of(sets, kind, 'train')}",
        f"--data.val_dataset={path_of(sets, kind, 'val')}",
        *("--lr.lr=0.05", "--lr.lr_peak_epoch=1", "--resolution.min_res=24", "--resolution.max_res=32"),
        *("--resolution.end_ramp=1", "--resolution.step=8", "--training.epochs=2", "--training.batch_size=5"),
        *("--training.device=cpu", "--training.amp=off", "--validation.resolution=32", "--validation.batch_size=5"),
        *(f"--logging.folder={folder}", "--logging.tensorboard=0", *more),
    ]


def test_training_from_a_zip_equals_training_from_a_beton(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_script(script_options(sets, tmp_path, "zip", "--data.cache=1", "--logging.run=zip"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run_here("train_imagenet.py", *script_options(sets, tmp_path, "beton", "--logging.run=beton"))
    assert capsys.readouterr().err == ""
    assert same_weights(tmp_path / "zip/final.pt", tmp_path / "beton/final.pt")
    a, b = (log(tmp_path / kind) for kind in ("zip", "beton"))
    for first, second in zip(a, b, strict=True):
        assert {key: first[key] for key in ("train_loss", "top_1", "nll", "count")} == {
            key: second[key] for key in ("train_loss", "top_1", "nll", "count")
        }
    found = tmp_path / "metrics.json"
    run_here("eval.py", "--checkpoint", tmp_path / "zip/final.pt", "--output", found)
    assert json.loads(found.read_text())["results"][0]["top_1"] == pytest.approx(a[-1]["top_1"])
    run_here(  # a .beton is one, whatever the checkpoint's format
        *("viz/logits.py", "--checkpoint", tmp_path / "zip/final.pt", "--features"),
        *(f"--data.val_dataset={sets / 'train.beton'}", "--output", tmp_path / "logits.pt"),
    )
    assert torch.load(tmp_path / "logits.pt", weights_only=True)["logits"].shape == (30, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_loses_no_step(sets: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and schedulers signal the workers as well."""
    arguments = script_options(
        sets, tmp_path, "zip", "--logging.run=r", "--training.epochs=400", "--validation.every=400"
    )
    with (tmp_path / "errors").open("w") as errors:
        run = subprocess.Popen(
            [sys.executable, "train_imagenet.py", *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 240
        while not (tmp_path / "r/last.pt").is_file():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(run.pid, number)
        assert run.wait(timeout=240) == 128 + number
    text = (tmp_path / "errors").read_text()
    assert "stopped by" in text and "Traceback" not in text
    resumed = [*arguments[:-2], "--training.epochs=400", "--training.resume=auto", "--logging.run=r", "--bad"]
    with pytest.raises(SystemExit) as ended:
        run_here("train_imagenet.py", *resumed)
    assert ended.value.code == 2


def test_cache_wants_a_zip(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_here("train_imagenet.py", *script_options(sets, tmp_path, "folder", "--data.cache=1"))
    assert ended.value.code == 2 and "data.cache=1 holds zip archives" in capsys.readouterr().err


def test_one_process_is_alone() -> None:
    assert process() == ALONE
