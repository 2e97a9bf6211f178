"""write_dataset.py: what it writes is read by stock FFCV; whatever goes wrong, nothing is left behind or lost."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ffcv_train.cli.write import main as command
from ffcv_train.config.read import load_config
from ffcv_train.data.convert import write as write_module
from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.convert.worker import write_samples
from ffcv_train.data.convert.write import WriteConfig, WriterRun, convert
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.layout import PAIR_MARK, EncodedSample
from ffcv_train.data.format.pagefile import PageFile
from ffcv_train.data.format.verify import verify
from ffcv_train.data.kernels.crops import RandomResizedCrop
from ffcv_train.data.loader import Loader
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from tests.support.kills import InProcess, abandons_files
from tests.support.limits import no_hang
from tests.support.photographs import ROOT, Samples, crops_of_photographs, decode_rgb, write_stock_beton

LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs as PNG in the class folders ape, bee, cat."""
    root = tmp_path_factory.mktemp("folder")
    save_folder(root, crops_of_photographs(10, 50, 120))
    return root


def save_folder(root: Path, images: list[np.ndarray]) -> None:
    for i, image in enumerate(images):
        file = root / ("ape", "bee", "cat")[LABELS[i % 10]] / f"{i:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)


def images_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*/*"))]


def write(folder: Path, path: Path, **options: object) -> Path:
    return convert(WriteConfig(**{"data_dir": str(folder), "write_path": str(path), "num_workers": 1, **options}))


def stored(path: Path) -> list[bytes]:
    beton, data = open_beton(path), path.read_bytes()
    return [data[ptr : ptr + size] for ptr, size in zip(beton.ptrs, beton.sizes, strict=True)]


def only(folder: Path, *names: str) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)


# What is written


def test_jpegs_without_tiles_equal_those_of_the_stock_writer(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    path = write(folder, tmp_path / "a.beton", write_mode="jpg", jpeg_quality=95, tiles=False)
    stock = write_stock_beton(tmp_path / "stock.beton", Samples(images, LABELS))
    assert stored(path) == stored(stock)
    ours, theirs = open_beton(path), open_beton(stock)
    for name in ("labels", "modes", "heights", "widths", "sizes"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_photographs_from_jpegs(tmp_path: Path) -> None:
    """Pixels as Pillow decodes them, in RGB order; JPEGs as FFCV encodes those; shrunk, within a level of OpenCV."""
    from ffcv.fields import rgb_image

    photographs = crops_of_photographs(10, 60, 200)
    for i, photograph in enumerate(photographs):
        (tmp_path / "images" / str(i)).mkdir(parents=True)
        options = {"subsampling": 2 * (i % 2), "progressive": i % 3 == 0}
        Image.fromarray(photograph).save(tmp_path / "images" / str(i) / "a.JPEG", quality=90, **options)
    images = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "images").glob("*/*"))]
    path = write(tmp_path / "images", tmp_path / "a.beton", write_mode="proportion", tiles=False)
    beton = open_beton(path)
    assert 0 < beton.modes.sum() < 10
    for data, mode, image in zip(stored(path), beton.modes, images, strict=True):
        assert data == (image.tobytes() if mode else rgb_image.encode_jpeg(image, 90).tobytes())

    path = write(tmp_path / "images", tmp_path / "b.beton", write_mode="raw", max_resolution=100)
    beton = open_beton(path)
    for data, height, width, image in zip(stored(path), beton.heights, beton.widths, images, strict=True):
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3).astype(int)
        reference = cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_AREA)
        assert max(height, width) <= 100 and np.abs(pixels - reference).max() <= 1


def test_stock_reader_opens_it(folder: Path, tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader

    images = images_of(folder)
    path = write(folder, tmp_path / "a.beton", write_mode="proportion")
    reader = Reader(str(path))
    assert reader.num_samples == 10 and reader.page_size == 1 << 23 and reader.field_names == ["image", "label"]
    assert [type(handler) for handler in reader.handlers.values()] == [RGBImageField, IntField]
    assert reader.metadata["f1"].tolist() == LABELS
    assert reader.alloc_table["sample_id"].tolist() == list(range(10))
    rows = reader.metadata["f0"]
    assert [(row["height"], row["width"]) for row in rows] == [image.shape[:2] for image in images]
    assert 0 < rows["mode"].sum() < 10
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    content = np.fromfile(path, np.uint8)
    for row, image in zip(rows, images, strict=True):
        data = content[row["data_ptr"] : row["data_ptr"] + sizes[int(row["data_ptr"])]]
        if row["mode"]:
            assert np.array_equal(data.reshape(image.shape), image)
        else:
            reference = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            assert np.array_equal(decode_rgb(data), decode_rgb(reference))


def test_stock_loader_reads_it(tmp_path: Path) -> None:
    """FFCV's own fields, in both of its ways to read pages; raw images come out equal, JPEGs as FFCV decodes them."""
    import torch

    threads = torch.get_num_threads()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    torch.set_num_threads(threads)
    images = crops_of_photographs(20, 48, 48)
    (tmp_path / "f").mkdir()
    save_folder(tmp_path / "f", images)
    files = sorted((tmp_path / "f").glob("*/*"))
    path = write(tmp_path / "f", tmp_path / "a.beton", write_mode="proportion", jpeg_quality=100)
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    loader = Loader(
        str(path), batch_size=20, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=False, pipelines=pipelines
    )
    ((pixels, labels),) = [(np.array(batch[0]), np.array(batch[1])) for batch in loader]
    assert labels.ravel().tolist() == [("ape", "bee", "cat").index(file.parent.name) for file in files]
    raw = open_beton(path).modes == 1
    for i, file in enumerate(files):
        difference = np.abs(pixels[i].astype(int) - np.asarray(Image.open(file)))
        assert difference.max() == 0 if raw[i] else difference.mean() < 12


def test_file_does_not_depend_on_workers_or_chunks(folder: Path, tmp_path: Path) -> None:
    variants = ({}, {"num_workers": 2, "chunk_size": 1}, {"num_workers": 2, "chunk_size": 3})
    files = [
        write(folder, tmp_path / f"{i}.beton", write_mode="proportion", max_resolution=80, seed=3, **variant)
        for i, variant in enumerate(variants)
    ]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    sidecars = [json.loads(sidecar_path(file).read_text()) for file in files]
    assert sidecars[0]["checksums"] == sidecars[1]["checksums"]
    other = write(folder, tmp_path / "other.beton", write_mode="proportion", max_resolution=80, seed=4)
    assert not np.array_equal(open_beton(other).modes, open_beton(files[0]).modes)


def test_a_subset_that_lacks_classes_is_noted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, tmp_path / "a.beton", subset=4)
    assert "the first 4 images, which --cfg.subset takes, are of 2 of the 3 classes" in capsys.readouterr().out
    write(folder, tmp_path / "a.beton", subset=7)
    assert "which --cfg.subset takes" not in capsys.readouterr().out


def test_sidecar(folder: Path, tmp_path: Path) -> None:
    path = write(folder, tmp_path / "a.beton", subset=7, max_resolution=64)
    sidecar = open_beton(path).sidecar
    assert sidecar is not None
    assert sidecar["format"] == 1 and sidecar["num_samples"] == 7 and sidecar["split"] == "train"
    assert sidecar["class_names"] == ["ape", "bee", "cat"] and sidecar["class_counts"] == [3, 2, 2]
    assert sidecar["source"] == {"dataset": "imagenet", "data_dir": str(folder), "num_images": 10}
    assert sidecar["settings"]["max_resolution"] == 64 and sidecar["skipped"] == []
    assert {"python", "ffcv", "pillow", "simplejpeg", "opencv"} <= set(sidecar["versions"])
    assert sidecar["files"] == [f"{('ape', 'bee', 'cat')[LABELS[i]]}/{i:03d}.png" for i in range(7)]
    only(tmp_path, "a.beton", "a.beton.json")


def test_crops_of_optimised_jpegs_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are cut from them too, with the tables of the whole image."""
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)
    (tmp_path / "f").mkdir()
    save_folder(tmp_path / "f", crops_of_photographs(10, 200, 300))
    batches = []
    for optimize in (False, True):
        path = write(tmp_path / "f", tmp_path / f"{optimize}.beton", write_mode="jpg", optimize=optimize)
        verify(path)
        with Loader(path, 10, crop=RandomResizedCrop((0.1, 0.4)), resolution=48, device="cpu", num_workers=1) as loader:
            batches.append([batch.images.clone() for batch in loader])
    assert all(bool((a == b).all()) for a, b in zip(*batches, strict=True))
    sizes = [int(open_beton(tmp_path / f"{optimize}.beton").sizes.sum()) for optimize in (False, True)]
    assert sizes[1] < 0.99 * sizes[0]


def test_smart_stores_large_images_as_jpeg(folder: Path, tmp_path: Path) -> None:
    sizes = [image.nbytes for image in images_of(folder)]
    path = write(folder, tmp_path / "a.beton", write_mode="smart", smart_threshold=int(np.median(sizes)))
    assert open_beton(path).modes.tolist() == [int(size <= int(np.median(sizes))) for size in sizes]


def test_resolution_is_limited(folder: Path, tmp_path: Path) -> None:
    beton = open_beton(write(folder, tmp_path / "a.beton", write_mode="raw", max_resolution=70))
    longer = [max(image.shape) for image in images_of(folder)]
    assert np.maximum(beton.heights, beton.widths).tolist() == [min(70, side) for side in longer]


def append(pages: PageFile, path: Path, sample: EncodedSample, label: int, data: bytes) -> None:
    position = pages.append(sample, label)
    with path.open("r+b") as file:
        write_samples(file.fileno(), [position], [data])


@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_pages_grow_and_no_sample_crosses_one(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """`open_beton` checks that; here also the bytes, with pages far smaller than they really are."""
    path = tmp_path_factory.mktemp("pages") / "a.beton"
    pages = PageFile(path, len(sizes) + 3, page_size=4096)
    contents = [np.random.default_rng(i).bytes(size) for i, size in enumerate(sizes)]
    for i, data in enumerate(contents):
        append(pages, path, EncodedSample(i, 0, 1, 1, len(data), 0), i % 7, data)
    pages.finish()
    beton = open_beton(path)
    assert stored(path) == contents and beton.labels.tolist() == [i % 7 for i in range(len(sizes))]
    assert beton.page_size == max(4096, 1 << (max(sizes) - 1).bit_length())


@given(gaps=st.lists(st.integers(0, 1), min_size=1, max_size=100), limit=st.integers(1, 2000))
@example(gaps=[0] * 3000, limit=0)
@settings(max_examples=30, deadline=None)
def test_samples_are_written_where_they_belong(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], limit: int
) -> None:
    """With gaps or end to end, more than one call of the system takes, or a part of what a call was given."""
    contents = [bytes([1 + i % 255]) * (1 + i % 7) for i in range(len(gaps))]
    positions = np.cumsum([3, *(len(data) + gap for data, gap in zip(contents, gaps, strict=True))])[:-1].tolist()
    expected = bytearray(positions[-1] + len(contents[-1]))
    for position, data in zip(positions, contents, strict=True):
        expected[position : position + len(data)] = data

    def some(file: int, buffers: list[bytes], position: int) -> int:
        return os.pwrite(file, b"".join(buffers)[:limit], position)

    path = tmp_path_factory.mktemp("samples") / "f"
    with path.open("xb") as file, pytest.MonkeyPatch.context() as patch:
        if limit:
            patch.setattr(os, "pwritev", some)
        write_samples(file.fileno(), positions, contents)
    assert path.read_bytes() == expected


def test_an_unfinished_file_is_no_beton(tmp_path: Path) -> None:
    pages = PageFile(tmp_path / "a.beton", 1, page_size=4096)
    append(pages, tmp_path / "a.beton", EncodedSample(0, 0, 1, 1, 3, 0), 0, b"abc")
    pages.close()
    with pytest.raises(UserError, match=r"not a \.beton file"):
        open_beton(tmp_path / "a.beton")


def test_output_says_what_to_expect_and_what_came(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, tmp_path / "a.beton")
    text = capsys.readouterr().out
    assert "10 images, 3 classes" in text and "estimate: " in text and "(from 10 images)" in text
    assert f"{tmp_path / 'a.beton'}: 10 samples" in text and "images/s" in text


def test_progress_is_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = WriteConfig(data_dir=str(folder), write_path=str(tmp_path / "a.beton"), num_workers=1, chunk_size=2)
    convert(config, progress=ProgressLine(plain_interval=0))
    assert "images 6/10" in capsys.readouterr().out


@pytest.mark.parametrize(("dataset", "target"), [("webdataset", "shards"), ("zip", "zip")])
def test_archives_give_the_same_samples(folder: Path, tmp_path: Path, dataset: str, target: str) -> None:
    import tarfile
    import zipfile

    root = tmp_path / target
    root.mkdir()
    files = sorted(folder.glob("*/*"))
    if dataset == "zip":
        with zipfile.ZipFile(root / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"train/{file.parent.name}/{file.name}")
        lines = [f"{file.parent.name}/{file.name}\t{label}\n" for file, label in zip(files, LABELS, strict=True)]
        (root / "train_map.txt").write_text("".join(lines))
    else:
        with tarfile.open(root / "train.tar", "w") as shard:
            for i, file in enumerate(files):
                (tmp_path / f"{i}.cls").write_text(str(LABELS[i]))
                shard.add(file, f"{i}.png")
                shard.add(tmp_path / f"{i}.cls", f"{i}.cls")
        (root / "classes.txt").write_text("ape\nbee\ncat\n")
    ours = write(root, tmp_path / "a.beton", dataset=dataset)
    reference = write(folder, tmp_path / "b.beton")
    assert ours.read_bytes() == reference.read_bytes()
    assert open_beton(ours).class_names == ("ape", "bee", "cat")


# What is wrong with the images or the options


def test_unreadable_image_stops_or_is_skipped(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "images"
    shutil.copytree(folder, broken)
    (broken / "ape" / "001.png").write_bytes(b"no image")
    whole = (broken / "cat" / "007.png").read_bytes()
    (broken / "cat" / "007.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"ape/001\.png .* cannot be read: it is not an image.*--cfg\.on_error=skip"):
        write(broken, out / "a.beton")
    only(out)
    path = write(broken, out / "a.beton", on_error="skip", write_mode="proportion", chunk_size=2, num_workers=2)
    beton = open_beton(path)
    kept = [0, 2, 3, 4, 5, 6, 8, 9]
    assert beton.labels.tolist() == [LABELS[i] for i in kept]
    assert beton.sidecar is not None and [item["name"] for item in beton.sidecar["skipped"]] == [
        "ape/001.png",
        "cat/007.png",
    ]
    assert "truncated" in beton.sidecar["skipped"][1]["reason"]
    assert beton.sidecar["class_counts"] == [2, 2, 4] and len(beton.sidecar["files"]) == 8
    # A sample's bytes do not depend on its neighbours.
    everything = stored(write(folder, out / "b.beton", write_mode="proportion"))
    assert stored(path) == [everything[i] for i in kept]
    verify(path)


def test_a_named_pipe_is_no_image(folder: Path, tmp_path: Path) -> None:
    piped = tmp_path / "images"
    shutil.copytree(folder, piped)
    (piped / "ape" / "001.png").unlink()
    os.mkfifo(piped / "ape" / "001.png")
    out = tmp_path / "out"
    out.mkdir()
    with no_hang(), pytest.raises(UserError, match=r"ape/001\.png .* cannot be read: it is a named pipe, not a file"):
        write(piped, out / "a.beton")
    only(out)
    with no_hang():
        beton = open_beton(write(piped, out / "a.beton", on_error="skip"))
    assert beton.sidecar is not None and [item["name"] for item in beton.sidecar["skipped"]] == ["ape/001.png"]
    with no_hang(), pytest.raises(UserError, match=r"ape/001\.png: it is a named pipe, not a file"):
        make_zips(piped, tmp_path / "zips", "train")


def test_all_skipped_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="none of the 1 images can be stored"):
        write(tmp_path / "images", tmp_path / "a.beton", on_error="skip")
    only(tmp_path, "images")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write_path": ""}, r"--cfg\.write_path is missing"),
        ({"data_dir": ""}, r"--cfg\.data_dir is missing"),
        ({"write_path": "TMP/none/a.beton"}, "does not exist; create it"),
        ({"write_path": "TMP"}, "is a folder"),
        ({"page_size": 3 << 20}, "power of two"),
        ({"page_size": 1 << 32}, "power of two"),
    ],
)
def test_bad_options_end_it_before_work(folder: Path, tmp_path: Path, options: dict, message: str) -> None:
    values = {"data_dir": str(folder), "write_path": str(tmp_path / "a.beton"), **options}
    values["write_path"] = values["write_path"].replace("TMP", str(tmp_path))
    with pytest.raises(UserError, match=message):
        convert(WriteConfig(**values))
    only(tmp_path)


def test_ffcvs_command_lines_work() -> None:
    line = (
        "--cfg.dataset=imagenet --cfg.split=val --cfg.data_dir=D --cfg.write_path=F --cfg.max_resolution=500 "
        "--cfg.write_mode=proportion --cfg.compress_probability=0.5 --cfg.jpeg_quality=90 --cfg.num_workers=16 "
        "--cfg.chunk_size=100 --cfg.subset=-1"
    )
    config = load_config(WriterRun, line.split()).cfg
    assert config.split == "val" and config.chunk_size == 100 and config.subset == -1
    assert load_config(WriterRun, ["--cfg.dataset=cifar"]).cfg.dataset == "cifar"


def test_full_disk_is_foreseen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=999))
    with pytest.raises(UserError, match="has only 999 B free"):
        write(folder, tmp_path / "a.beton")
    only(tmp_path)


# What goes wrong on the way


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 links to one large photograph: half a minute of work at least."""
    root = tmp_path_factory.mktemp("long")
    photograph = cv2.resize(crops_of_photographs(1, 200, 200)[0], (2000, 1500))
    Image.fromarray(photograph).save(root / "photograph.jpg")
    (root / "images" / "a").mkdir(parents=True)
    for i in range(2000):
        (root / "images" / "a" / f"{i:04d}.jpg").symlink_to(root / "photograph.jpg")
    return root / "images"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a finished file that must survive."""
    (tmp_path / "a.beton").write_bytes(b"precious")
    (tmp_path / "a.beton.json").write_bytes(b"precious too")
    return tmp_path


def unharmed(out: Path) -> None:
    only(out, "a.beton", "a.beton.json")
    assert (out / "a.beton").read_bytes() == b"precious" and (out / "a.beton.json").read_bytes() == b"precious too"


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
    return []


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def pages_are_written(out: Path) -> bool:
    return any(file.stat().st_size > 9 << 20 for file in out.glob("a.beton.tmp-*"))


@contextlib.contextmanager
def while_writing(out: Path, action: Callable[[], None]) -> Iterator[list[float]]:
    """Run `action` in a thread as soon as the first pages are written; gives the time at which it ran."""
    at: list[float] = []

    def watch() -> None:
        wait_for(lambda: pages_are_written(out))
        at.append(time.monotonic())
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    yield at
    thread.join()


@abandons_files
def test_a_worker_that_dies_ends_it_at_once(long_folder: Path, out: Path) -> None:
    me = psutil.Process()
    with (
        while_writing(out, lambda: workers_of(me)[0].kill()) as killed_at,
        pytest.raises(UserError, match="a worker process was ended by SIGKILL before its work was done"),
    ):
        write(long_folder, out / "a.beton", write_mode="jpg", num_workers=2)
    assert time.monotonic() - killed_at[0] < 120
    assert not workers_of(me)
    unharmed(out)


def test_where_a_worker_does_not_start_the_others_end(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SpawnProcess] = []
    real = SpawnProcess.start

    def start(self: SpawnProcess) -> None:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        real(self)
        started.append(self)

    monkeypatch.setattr(SpawnProcess, "start", start)
    with pytest.raises(UserError, match=r"1 of 3 worker processes started \(Resource temporarily unavailable\); use f"):
        write(folder, out / "a.beton", num_workers=3)
    assert started[0].exitcode == -signal.SIGKILL
    unharmed(out)


def test_sigterm_ends_it(long_folder: Path, out: Path) -> None:
    number = signal.SIGTERM
    before = signal.getsignal(number)
    with (
        while_writing(out, lambda: os.kill(os.getpid(), number)) as at,
        pytest.raises(UserError, match=f"stopped by {number.name}"),
    ):
        write(long_folder, out / "a.beton", write_mode="jpg", num_workers=1)
    assert time.monotonic() - at[0] < 120
    assert signal.getsignal(number) is before and not workers_of(psutil.Process())
    unharmed(out)


def test_full_disk_ends_it(long_folder: Path, out: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing fails half-way, with OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 << 20, before[1]))
    try:
        with pytest.raises(UserError, match=r"writing .*a\.beton failed: File too large"):
            write(long_folder, out / "a.beton", write_mode="jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not workers_of(psutil.Process())
    unharmed(out)


def start(long_folder: Path, out: Path) -> subprocess.Popen:
    arguments = (f"--cfg.data_dir={long_folder}", f"--cfg.write_path={out / 'a.beton'}", "--cfg.write_mode=jpg")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "write_dataset.py"), *arguments, "--cfg.num_workers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: pages_are_written(out) or process.poll() is not None)
    return process


def test_ctrl_c_ends_it(long_folder: Path, out: Path) -> None:
    """As from a terminal: the signal reaches the workers too. A second one does not disturb the cleaning."""
    process = start(long_folder, out)
    workers = workers_of(psutil.Process(process.pid))
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors == "interrupted\n"
    assert not any(worker.is_running() for worker in workers)
    unharmed(out)


def test_workers_end_when_the_parent_is_killed(long_folder: Path, out: Path) -> None:
    process = start(long_folder, out)
    workers = workers_of(psutil.Process(process.pid))
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert len(workers) == 2 and not alive
    # Nobody was left to remove the temporary file; the next run goes on with it.
    assert len(list(out.glob("a.beton.tmp-*"))) == 1


def test_files_of_a_killed_run_are_mentioned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.beton.tmp-0123").touch()
    write(folder, tmp_path / "a.beton")
    assert "a.beton.tmp-0123 is of a run that was killed" in capsys.readouterr().out


def test_success_replaces_the_old_file(folder: Path, out: Path) -> None:
    (out / "link.beton").symlink_to("a.beton")
    write(folder, out / "link.beton")
    assert (out / "link.beton").is_symlink() and len(open_beton(out / "a.beton")) == 10
    only(out, "a.beton", "a.beton.json", "link.beton")


def test_script_runs(folder: Path, tmp_path: Path) -> None:
    arguments = [f"--cfg.data_dir={folder}", "--cfg.write_path=a.beton", "--cfg.num_workers=1"]
    command_line = [sys.executable, str(ROOT / "write_dataset.py"), *arguments]
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "a.beton: 10 samples" in done.stdout
    only(tmp_path, "a.beton", "a.beton.json")


# Verification


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        folder, tmp_path_factory.mktemp("finished") / "a.beton", write_mode="proportion", seed=1, page_size=1 << 21
    )


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    for file in (finished, sidecar_path(finished)):
        shutil.copy(file, tmp_path)
    return tmp_path / finished.name


def alone(path: Path) -> Path:
    """As the stock writer leaves a file: without a sidecar, and without the word that there is one."""
    sidecar_path(path).unlink()
    data = path.read_bytes()
    start = data.index(PAIR_MARK)
    path.write_bytes(data[:start] + bytes(len(PAIR_MARK) + 64) + data[start + len(PAIR_MARK) + 64 :])
    return path


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_verify_accepts_what_was_written(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(["--verify", str(finished)])
    command([f"--verify={finished}"])
    assert capsys.readouterr().out.count("all 10 samples are sound, its sidecar agrees") == 2


def test_verify_accepts_files_of_the_stock_writer(
    jpg_beton: Path, raw_beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(jpg_beton)
    shutil.copy(raw_beton, tmp_path / "alone.beton")
    verify(tmp_path / "alone.beton")
    text = capsys.readouterr().out
    assert "its sidecar agrees, which holds no checksums" in text and "no sidecar to compare with" in text


@given(sample=st.integers(0, 9), share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_verify_finds_any_flipped_bit(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, sample: int, share: float
) -> None:
    path = tmp_path_factory.mktemp("flip") / finished.name
    shutil.copy(finished, path)
    shutil.copy(sidecar_path(finished), sidecar_path(path))
    beton = open_beton(path)
    size = int(beton.sizes[sample])
    flip(
        path, int(beton.ptrs[sample]) + min(int(share * size), size - 1)
    )  # the product of a share near 1 is rounded up
    with pytest.raises(UserError, match="1 of 10 samples"):
        verify(path)


def test_verify_names_the_sample(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beton = open_beton(copy)
    jpeg, raw = int(np.flatnonzero(beton.modes == 0)[0]), int(np.flatnonzero(beton.modes == 1)[0])
    flip(copy, int(beton.ptrs[jpeg]))
    flip(copy, int(beton.ptrs[raw]) + 5)
    with pytest.raises(UserError, match="2 of 10 samples"):
        verify(copy)
    text = capsys.readouterr().out
    assert f"{beton.describe(jpeg)} is not a JPEG" in text
    assert f"{beton.describe(raw)} differs from its checksum" in text


def test_verify_without_checksums_decodes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beton = open_beton(alone(copy))
    index = int(np.flatnonzero(beton.modes == 0)[0])
    with copy.open("r+b") as file:
        file.seek(int(beton.ptrs[index] + beton.sizes[index] // 2))
        file.write(b"\xff\xd9" * 20)
    with pytest.raises(UserError, match="1 of 10 samples"):
        verify(copy)
    assert f"sample {index} at byte {beton.ptrs[index]} of {copy} is a damaged JPEG" in capsys.readouterr().out


def test_verify_compares_sizes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beton = open_beton(alone(copy))
    index = int(np.flatnonzero(beton.modes == 0)[0])
    row = copy.read_bytes().index(int(beton.ptrs[index]).to_bytes(8, "little"))
    flip(copy, row - 4)  # the low byte of the width
    with pytest.raises(UserError, match="1 of 10 samples"):
        verify(copy)
    assert "but the sample table says" in capsys.readouterr().out


def test_verify_finds_truncation(copy: Path) -> None:
    data = copy.read_bytes()
    for length in (0, 10, 1500, len(data) // 2, len(data) - 100, len(data) - 1):
        copy.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"a\.beton"):
            verify(copy)


def test_verify_finds_a_changed_label(copy: Path) -> None:
    row = copy.read_bytes().index(int(open_beton(copy).ptrs[4]).to_bytes(8, "little"))
    with copy.open("r+b") as file:
        file.seek(row + 8)
        while file.read(1) != b"\x01":  # the label of sample 4, after what padding there is
            pass
        file.seek(-1, 1)
        file.write(b"\x02")
    with pytest.raises(UserError, match="counts other numbers of images per class"):
        verify(copy)
    with copy.open("r+b") as file:
        file.seek(row + 8)
        while file.read(1) != b"\x02":
            pass
        file.seek(-1, 1)
        file.write(b"\x07")
    with pytest.raises(UserError, match=r"has label 7, but .* names 3 classes"):
        verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ["one"]}, "lists another number of files"),
        ({"class_counts": [1, 2, 7]}, "counts other numbers"),
        ({"checksums": 3}, "was not written with"),
        ({"class_names": ["ape", "cat", "bee"]}, "no longer those that it was written with"),
    ],
)
def test_verify_compares_the_sidecar(copy: Path, change: dict, message: str) -> None:
    sidecar = json.loads(sidecar_path(copy).read_text())
    sidecar_path(copy).write_text(json.dumps({**sidecar, **change}))
    with pytest.raises(UserError, match=message):
        verify(copy)


@pytest.mark.parametrize("change", [{"samples": "00"}, {"samples": "x"}, {"tables": None}])
def test_verify_finds_damaged_checksums(copy: Path, change: dict) -> None:
    sidecar = json.loads(sidecar_path(copy).read_text())
    sidecar["checksums"] |= change
    sidecar_path(copy).write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match="damaged checksums"):
        verify(copy)


def test_verify_finds_changed_tables(copy: Path) -> None:
    """Two rows of one class exchanged: every count is right, and every image decodes."""
    beton = open_beton(copy)
    data = bytearray(copy.read_bytes())
    size = (
        24
        if data.index(int(beton.ptrs[1]).to_bytes(8, "little")) - data.index(int(beton.ptrs[0]).to_bytes(8, "little"))
        == 24
        else 32
    )
    first = data.index(int(beton.ptrs[0]).to_bytes(8, "little")) - 5
    data[first : first + size], data[first + size : first + 2 * size] = (
        data[first + size : first + 2 * size],
        data[first : first + size],
    )
    copy.write_bytes(data)
    with pytest.raises(UserError, match=r"sample 0 points to .* which holds the image of sample 1"):
        verify(copy)


def test_verify_takes_one_file() -> None:
    for arguments in (["--verify"], ["--verify", "a", "b"], ["--verify=a", "--cfg.num_workers=2"]):
        with pytest.raises(UserError, match=r"--verify takes one \.beton file"):
            command(arguments)
