"""Sources against the libraries that define their layouts: torchvision's ImageFolder, webdataset, zipfile."""

import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ffcv_train.data.convert.make_zip import make_zips
from ffcv_train.data.loading.pictures import open_pictures
from ffcv_train.data.sources.class_files import read_class_names
from ffcv_train.data.sources.image_file import decode_rgb
from ffcv_train.data.sources.indexed import IndexedSource
from ffcv_train.data.sources.open import open_source
from ffcv_train.data.sources.source import Source, SourceOptions
from ffcv_train.data.sources.walk import image_suffixes
from ffcv_train.data.sources.zips import parse_map
from ffcv_train.evaluation.gradcam_images import open_images
from ffcv_train.system.errors import UserError
from tests.support.limits import no_hang

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def picture(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, *files: str) -> None:
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number) if not file.endswith("/x") else b"")


def content(source: Source) -> list[tuple[str, int]]:
    return [(source.name(i), int(source.labels[i])) for i in range(len(source))]


# Class folders


def test_class_folders_equal_torchvisions_imagefolder(tmp_path: Path) -> None:
    put(tmp_path, "cat/b.JPEG", "cat/a.png", "cat/a-b/z.jpg", "cat/a/y.jpg", "cat/notes.txt", "ant/1.webp", "Dog/2.jpg")
    source = open_source("imagenet", SourceOptions(str(tmp_path), "train"))
    reference = torchvision.datasets.ImageFolder(str(tmp_path))
    assert list(source.class_names) == reference.classes == ["Dog", "ant", "cat"]
    mine = [(str((tmp_path / name).resolve()), label) for name, label in content(source)]
    assert mine == [(str(Path(path).resolve()), label) for path, label in reference.samples]
    assert source.read(2) == Path(reference.samples[2][0]).read_bytes()


def test_hidden_files_and_folders_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/._1.jpg", ".cache/2.jpg", "a/.trash/3.jpg")
    source = open_source("imagenet", SourceOptions(str(tmp_path), "train"))
    assert content(source) == [("a/1.jpg", 0)] and source.class_names == ("a",)


def test_a_folder_that_is_linked_to_counts_once(tmp_path: Path) -> None:
    """What `ln -s STORE a` leaves when it is given twice; links up, across, to themselves and to nowhere."""
    root = tmp_path / "data/train"
    put(tmp_path, "store/0.jpg", "store/1.jpg", "other/2.jpg", "other/more/3.jpg")
    put(root, "b/4.jpg", "cat/5.jpg", "cat/kittens/6.jpg")
    for link, target in (
        ("a", tmp_path / "store"),
        ("b/linked", tmp_path / "other"),
        ("cat/up", Path("..")),
        ("cat/further", Path("../..")),
        ("ape", Path("cat/kittens")),
        ("b/itself", Path("itself")),
        ("b/nowhere", Path("absent")),
    ):
        (root / link).symlink_to(target)
    (tmp_path / "store/store").symlink_to(tmp_path / "store")
    (tmp_path / "other/more/back").symlink_to(tmp_path / "other")
    with no_hang():
        source = open_source("imagenet", SourceOptions(str(root), "train"))
    assert [(name, source.class_names[label]) for name, label in content(source)] == [
        ("a/0.jpg", "a"),
        ("a/1.jpg", "a"),
        ("b/4.jpg", "b"),
        ("b/linked/2.jpg", "b"),
        ("b/linked/more/3.jpg", "b"),
        ("cat/5.jpg", "cat"),
        ("cat/kittens/6.jpg", "cat"),
    ]
    assert source.notes[0].startswith("5 folders are left out, being searched under another path: a/store is a, …")


def test_every_ending_that_is_taken_can_be_read(tmp_path: Path) -> None:
    Image.init()
    torchvisions = set(torchvision.datasets.folder.IMG_EXTENSIONS)
    assert torchvisions | {".jfif", ".jpe", ".gif", ".avif", ".jp2", ".tga", ".qoi"} <= image_suffixes()
    for suffix in image_suffixes():
        kind = Image.registered_extensions()[suffix]
        buffer = io.BytesIO()
        Image.fromarray(np.full((9, 8, 3), 99, np.uint8)).save(buffer, kind, save_all=False)
        assert decode_rgb(buffer.getvalue()).shape == (9, 8, 3), suffix
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / f"a/x{suffix.upper()}").write_bytes(buffer.getvalue())
    assert len(open_source("imagenet", SourceOptions(str(tmp_path), "train"))) == len(image_suffixes())


def test_files_that_are_left_out_are_counted_by_their_endings(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.JFIF", "b/x", "b/3.txt", "b/c/4.TXT", "b/5.jpg", "b/.hidden")
    source = open_source("imagenet", SourceOptions(str(tmp_path), "train"))
    assert len(source) == 3
    assert source.notes == ("3 files are left out, by their endings no images: .txt (2), none (1)",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_the_content_decides_where_a_name_has_no_ending(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a/1.jpg")
    (tmp_path / "a/image").write_bytes(picture(1, kind))
    for name, other in (("README", b"BM is no bitmap"), ("empty", b""), ("drawing", b"<svg/>"), ("1.jpg_large", b"")):
        (tmp_path / "a" / name).write_bytes(other)
    os.mkfifo(tmp_path / "a/pipe")
    with no_hang():
        source = open_source("imagenet", SourceOptions(str(tmp_path), "train"))
        shown = [picture.name for picture in open_pictures([tmp_path])]
        explained = open_images(tmp_path)
    assert content(source) == [("a/1.jpg", 0), ("a/image", 0)]
    assert source.notes == ("5 files are left out, by their endings no images: none (4), .jpg_large (1)",)
    assert shown == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/a/image"]
    assert [file.name for file in explained.files] == ["1.jpg", "image"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("1.jpg", "image", "README"):
            archive.write(tmp_path / "a" / name, name)
    assert [picture.name for picture in open_pictures([tmp_path / "all.zip"])] == [
        f"{tmp_path}/all.zip/{name}" for name in ("1.jpg", "image")
    ]


def test_folders_of_the_system_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "@eaDir/1.jpg/thumb.jpg", "a/@eaDir/1.jpg/thumb.jpg", "__MACOSX/a/1.jpg", "#recycle/2.jpg")
    source = open_source("imagenet", SourceOptions(str(tmp_path), "train"))
    assert content(source) == [("a/1.jpg", 0)] and source.class_names == ("a",) and not source.notes


@pytest.mark.parametrize("data_dir", ["", "val"])
def test_validation_takes_the_labels_of_train(tmp_path: Path, data_dir: str) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/1.jpg", "val/c/1.jpg")
    source = open_source("imagenet", SourceOptions(str(tmp_path / data_dir), "val"))
    assert content(source) == [("b/1.jpg", 1), ("c/1.jpg", 2)]
    assert source.class_names == ("a", "b", "c")
    assert source.notes == ("1 of 3 classes has no images: 'a', label 0",)
    put(tmp_path, "val/d/1.jpg")
    with pytest.raises(UserError, match=r"'d', which .*train does not know"):
        open_source("imagenet", SourceOptions(str(tmp_path / data_dir), "val"))


@pytest.mark.parametrize("kind", ["text", "sidecar", "beton"])
def test_classes_fix_the_order_of_labels(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "images", "b/1.jpg", "a/1.jpg")
    (tmp_path / "classes.txt").write_text("z\nb\r\na\n")
    (tmp_path / "t.beton.json").write_text(json.dumps({"class_names": ["z", "b", "a"]}))
    file = {"text": "classes.txt", "sidecar": "t.beton.json", "beton": "t.beton"}[kind]
    source = open_source("imagenet", SourceOptions(str(tmp_path / "images"), "val", str(tmp_path / file)))
    assert content(source) == [("a/1.jpg", 2), ("b/1.jpg", 1)] and source.class_names == ("z", "b", "a")
    put(tmp_path / "images", "q/1.jpg")
    with pytest.raises(UserError, match="'q'"):
        open_source("imagenet", SourceOptions(str(tmp_path / "images"), "val", str(tmp_path / file)))


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["1.jpg", "2.jpg"], "train", "no class folders"),
        (["a/x", "b/x"], "train", "holds no images"),
        (["train/a/1.jpg", "train/b/2.jpg"], "val", "holds the split 'train' but not 'val'"),
    ],
)
def test_wrong_folders(tmp_path: Path, files: list[str], split: str, message: str) -> None:
    put(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        open_source("imagenet", SourceOptions(str(tmp_path), split))


@pytest.mark.parametrize("dataset", ["imagenet", "zip", "webdataset", "cifar10"])
def test_missing_folder(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match="absent"):
        open_source(dataset, SourceOptions(str(tmp_path / "absent"), "train"))


@pytest.mark.parametrize("text", ["", "\n", "a\n\nb\n", "a\na\n"])
def test_bad_class_names(tmp_path: Path, text: str) -> None:
    put(tmp_path / "images", "a/1.jpg")
    file = tmp_path / "classes.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=r"classes\.txt"):
        open_source("imagenet", SourceOptions(str(tmp_path / "images"), "train", str(file)))


def test_unreadable_class_names(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "bad.json").write_text("[1, 2")
    for name, message in (("latin", "UTF-8"), ("bad.json", "does not list"), ("absent", "cannot read")):
        with pytest.raises(UserError, match=message):
            read_class_names(tmp_path / name)


def test_white_space_around_a_name_is_no_part_of_it(tmp_path: Path) -> None:
    """A list of names cannot hold it, so that a folder, the zip and the .beton made from it would differ."""
    put(tmp_path / "images", "train/ dog /1.jpg", "train/cat\u2028/1.jpg", "train/a\u2028b/1.jpg", "val/dog/1.jpg")
    names = ("dog", "a\u2028b", "cat")
    assert open_source("imagenet", SourceOptions(str(tmp_path / "images"), "train")).class_names == names
    assert content(open_source("imagenet", SourceOptions(str(tmp_path / "images"), "val"))) == [("dog/1.jpg", 0)]
    make_zips(tmp_path / "images", tmp_path / "zips")
    (tmp_path / "zips" / "listed.txt").write_text(" dog \r\na\u2028b\ncat\n\n", newline="")
    assert read_class_names(tmp_path / "zips" / "listed.txt") == names
    for with_list in (True, False):
        if not with_list:
            (tmp_path / "zips" / "classes.txt").unlink()
        assert open_source("zip", SourceOptions(str(tmp_path / "zips"), "val")).class_names == names
    put(tmp_path / "images", "train/dog/1.jpg")
    with pytest.raises(UserError, match="' dog ' and 'dog', whose names differ in nothing but white space"):
        open_source("imagenet", SourceOptions(str(tmp_path / "images"), "train"))
    put(tmp_path / "blank", " /1.jpg")
    with pytest.raises(UserError, match="' ', which has no name"):
        open_source("imagenet", SourceOptions(str(tmp_path / "blank"), "train"))


# The zipped layout

PATHS = st.text(st.characters(exclude_characters="\n\r\t", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(PATHS, st.integers(0, 10**6))), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_map_round_trip(entries: list[tuple[str, int]], ending: str) -> None:
    assert parse_map("".join(f"{path}\t{label}{ending}" for path, label in entries), "map") == entries


@given(st.text())
def test_any_map_parses_or_names_the_line(text: str) -> None:
    try:
        for path, label in parse_map(text, "map.txt"):
            assert path and label >= 0
    except UserError as error:
        assert "of map.txt" in str(error)


@pytest.mark.parametrize("line", ["a.jpg 3", "a.jpg\t-1", "a.jpg\t1.5", "\t3", "a.jpg\t", "a.jpg\t٣"])
def test_bad_map_line_is_named(line: str) -> None:
    with pytest.raises(UserError, match=r"line 3 of map\.txt"):
        parse_map(f"b.jpg\t0\n\n{line}\n", "map.txt")


def write_zip(root: Path, split: str, entries: dict[str, int], prefix: str | None = None, **options: int) -> None:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / f"{split}.zip", "w", **options) as archive:
        archive.mkdir(split) if hasattr(archive, "mkdir") else None
        for number, name in enumerate(entries):
            archive.writestr(f"{split}/{name}" if prefix is None else f"{prefix}{name}", picture(number))
    (root / f"{split}_map.txt").write_text("".join(f"{name}\t{label}\n" for name, label in entries.items()))


TRAIN = {"tabby/1.jpg": 2, "zebra/1.jpg": 0, "tabby/2.jpg": 2}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", [None, ""])
def test_zip(tmp_path: Path, compression: int, prefix: str | None) -> None:
    write_zip(tmp_path, "train", TRAIN, prefix, compression=compression)
    write_zip(tmp_path, "val", {"v 1.jpg": 2, "v2.jpg": 0}, prefix, compression=compression)
    train = open_source("zip", SourceOptions(str(tmp_path), "train"))
    val = open_source("zip", SourceOptions(str(tmp_path), "val"))
    assert content(train) == list(TRAIN.items()) and content(val) == [("v 1.jpg", 2), ("v2.jpg", 0)]
    assert train.class_names == val.class_names == ("zebra", "1", "tabby")
    assert [train.read(i) for i in range(3)] == [picture(i) for i in range(3)]
    (tmp_path / "classes.txt").write_text("striped\nnone\ncat\n")
    assert open_source("zip", SourceOptions(str(tmp_path), "val")).class_names == ("striped", "none", "cat")


def test_zip_without_class_folders_numbers_the_classes(tmp_path: Path) -> None:
    write_zip(tmp_path, "val", {"1.jpg": 1, "2.jpg": 3})
    source = open_source("zip", SourceOptions(str(tmp_path), "val"))
    assert source.class_names == ("0", "1", "2", "3") and not source.named
    assert source.notes == ("2 of 4 classes have no images: '0', label 0, …",)


def test_a_list_of_the_class_folders_in_another_order_gives_the_labels(tmp_path: Path) -> None:
    """As it does for a folder; val, flat, has its labels' folders from the map of train."""
    write_zip(tmp_path, "train", {"a/1.jpg": 0, "b/2.jpg": 1, "c/3.jpg": 2})
    write_zip(tmp_path, "val", {"4.jpg": 2, "5.jpg": 0})
    (tmp_path / "classes.txt").write_text("c\nz\nb\na\n")
    train, val = (open_source("zip", SourceOptions(str(tmp_path), split)) for split in ("train", "val"))
    assert train.labels.tolist() == [3, 2, 0] and val.labels.tolist() == [0, 3]
    assert train.class_names == val.class_names == ("c", "z", "b", "a")
    assert "images are labelled by the list" in train.notes[0]
    (tmp_path / "classes.txt").write_text("cat\nb\na\n")  # other names for the map's labels
    assert open_source("zip", SourceOptions(str(tmp_path), "train")).labels.tolist() == [0, 1, 2]


def test_labels_from_one(tmp_path: Path) -> None:
    """Class folders 0, 1, 2 with the labels 1, 2, 3: what stands for the name of label 0 is in use."""
    write_zip(tmp_path, "train", {f"{label}/{image}.jpg": label + 1 for label in range(3) for image in "ab"})
    source = open_source("zip", SourceOptions(str(tmp_path), "train"))
    assert source.class_names == ("unnamed 0", "0", "1", "2") and source.named
    assert source.notes == ("1 of 4 classes has no images: 'unnamed 0', label 0",)
    (tmp_path / "t.beton.json").write_text(json.dumps({"class_names": source.class_names}))
    put(tmp_path / "images", "0/1.jpg", "2/1.jpg")
    folders = open_source("imagenet", SourceOptions(str(tmp_path / "images"), "train", str(tmp_path / "t.beton")))
    assert content(folders) == [("0/1.jpg", 1), ("2/1.jpg", 3)]


def test_a_label_far_beyond_the_number_of_images_takes_no_memory(tmp_path: Path) -> None:
    far = {"a/1.jpg": 0, "b/2.jpg": 999_999_999}
    write_zip(tmp_path, "train", far)
    write_zip(tmp_path / "val", "val", {"1.jpg": 0, "2.jpg": 30_000})
    write_shard(tmp_path / "x.tar", [("k", {"jpg": picture(0), "cls": b"999999999"})])

    def open_all() -> None:
        with pytest.raises(UserError, match=r"line 2 of .*train_map.txt has the label 999999999, far beyond"):
            open_source("zip", SourceOptions(str(tmp_path), "train"))
        with pytest.raises(UserError, match=r"x.tar/k has the label 999999999, far beyond"):
            open_source("webdataset", SourceOptions(str(tmp_path), "train"))
        with pytest.raises(UserError, match=r"list\[1\] has the label 999999999, far beyond"):
            IndexedSource([(None, 0), (None, 999_999_999)])

    tracemalloc.start()
    open_all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert len(open_source("zip", SourceOptions(str(tmp_path / "val"), "val")).class_names) == 30_001
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match=r"line 2 of .*train_map.txt has the label 999999999, but 2 classes are named"):
        open_source("zip", SourceOptions(str(tmp_path), "train"))


def test_an_image_with_two_labels_is_said(tmp_path: Path) -> None:
    write_zip(tmp_path, "train", TRAIN)
    with (tmp_path / "train_map.txt").open("a") as file:
        file.write("tabby/1.jpg\t0\ntabby/2.jpg\t2\n")
    (note, _) = open_source("zip", SourceOptions(str(tmp_path), "train")).notes
    assert "lists 1 image with several labels: tabby/1.jpg with 2 and 0; each counts under all of them" in note


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["cat/a/1.jpg", "cat/2.jpg", "dog/b/c/3.jpg"], ("cat", "dog/b/c")),  # sub-folders of a class
        (["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg"], ("cat", "dog")),
        (["all/1.jpg", "all/2.jpg", "all/3.jpg"], None),
        (["x/1/1.jpg", "y/2/2.jpg", "dog/3.jpg"], ("0", "dog")),
    ],
)
def test_class_folders_of_a_map(tmp_path: Path, paths: list[str], names: tuple[str, ...] | None) -> None:
    write_zip(tmp_path, "train", dict(zip(paths, (0, 0, 1), strict=True)))
    source = open_source("zip", SourceOptions(str(tmp_path), "train"))
    assert source.named == (names is not None) and source.class_names == (names or ("0", "1"))


def test_zip_bad_input(tmp_path: Path) -> None:
    def message(folder: str, split: str = "train") -> str:
        with pytest.raises(UserError) as caught:
            open_source("zip", SourceOptions(str(tmp_path / folder), split))
        return str(caught.value)

    write_zip(tmp_path / "a", "train", TRAIN)
    assert "val.zip does not exist" in message("a", "val")
    (tmp_path / "a" / "classes.txt").write_text("one\ntwo\n")
    assert "has the label 2, but 2 classes are named" in message("a")
    write_zip(tmp_path / "b", "train", TRAIN)
    (tmp_path / "b" / "train_map.txt").write_text("zebra/9.jpg\t0\n")
    assert "lists zebra/9.jpg" in message("b")
    write_zip(tmp_path / "c", "train", TRAIN)
    archive = tmp_path / "c" / "train.zip"
    archive.write_bytes(archive.read_bytes()[:-40])
    assert "cannot read the archive" in message("c")
    write_zip(tmp_path / "d", "train", TRAIN, compression=zipfile.ZIP_LZMA)
    assert "stored or deflated" in message("d")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_within_a_zip_is_noticed(tmp_path: Path, compression: int) -> None:
    write_zip(tmp_path, "train", TRAIN, compression=compression)
    source = open_source("zip", SourceOptions(str(tmp_path), "train"))
    data = bytearray((tmp_path / "train.zip").read_bytes())
    data[source.place(1).offset + 300] ^= 1  # type: ignore[union-attr]
    (tmp_path / "train.zip").write_bytes(data)
    assert source.read(0) == picture(0)
    with pytest.raises(OSError, match="damaged"):
        source.read(1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data beside this checkout")
def test_real_cifar10_zip() -> None:
    source = open_source("zip", SourceOptions(str(SHARED / "cifar10"), "val"))
    assert len(source) == 10000 and source.class_names[3] == "cat"
    assert np.bincount(source.labels).tolist() == [1000] * 10
    with zipfile.ZipFile(SHARED / "cifar10" / "val.zip") as archive:
        assert source.read(7777) == archive.read(f"val/{source.name(7777)}")


# Tar shards


def write_shard(file: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(file, "w") as archive:
        for key, parts in samples:
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file


def shard_samples(first: int, count: int) -> list[tuple[str, dict[str, bytes]]]:
    kinds = (("jpg", "JPEG"), ("PNG", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP"))
    samples = []
    for i in range(first, first + count):
        suffix, kind = kinds[i % 4]
        label = {"cls": b"%d\n" % (i % 3)} if i % 2 else {"json": json.dumps({"label": i % 3, "n": i}).encode()}
        samples.append((f"./some.dir/s{i:03d}", {suffix: picture(i, kind), **label, "seg.txt": b"other"}))
    return samples


def read_by_webdataset(shards: list[Path]) -> list[dict[str, Any]]:
    """What that package makes of the shards, which it leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
        gc.collect()
    return samples


@pytest.mark.parametrize("given_as", ["folder", "split", "glob", "brace"])
def test_shards_equal_webdataset(tmp_path: Path, given_as: str) -> None:
    folder = tmp_path / "train" if given_as == "split" else tmp_path
    shards = [write_shard(folder / f"x-train-{n:02d}.tar", shard_samples(5 * n, 5)) for n in range(3)]
    write_shard(folder / "x-validation-00.tar", shard_samples(0, 1))
    given = {"glob": "x-train-*.tar", "brace": "x-train-{00..02}.tar"}.get(given_as, "")
    source = open_source("webdataset", SourceOptions(str(tmp_path / given), "train"))
    reference = read_by_webdataset(shards)
    assert len(source) == len(reference) == 15 and source.class_names == ("0", "1", "2")
    for i, sample in enumerate(reference):
        assert source.read(i) == next(sample[suffix] for suffix in ("jpg", "png", "jpeg", "webp") if suffix in sample)
        label = int(sample["cls"]) if "cls" in sample else json.loads(sample["json"])["label"]
        assert source.labels[i] == label
    assert source.name(0) == "x-train-00.tar/./some.dir/s000"
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    assert open_source("webdataset", SourceOptions(str(tmp_path / given), "train")).class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"jpg": picture(0)}, "k has no label"),
        ({"jpg": picture(0), "cls": b"cat"}, "k has no label"),
        ({"jpg": picture(0), "json": b'{"label": true}'}, "k has no label"),
        ({"jpg": picture(0), "json": b"{"}, "k has no label"),
        ({"cls": b"1"}, "k has no jpg"),
        ({"jpg": picture(0), "JPG": picture(1), "cls": b"1"}, "stands twice"),
    ],
)
def test_bad_shard_samples(tmp_path: Path, parts: dict[str, bytes], message: str) -> None:
    write_shard(tmp_path / "a.tar", [("k", parts)])
    with pytest.raises(UserError, match=message):
        open_source("webdataset", SourceOptions(str(tmp_path), "train"))


def test_bad_shards(tmp_path: Path) -> None:
    def message(pattern: str, split: str = "train") -> str:
        with pytest.raises(UserError) as caught:
            open_source("webdataset", SourceOptions(str(tmp_path / pattern), split))
        return str(caught.value)

    shard = write_shard(tmp_path / "train-0.tar", shard_samples(0, 4))
    assert "holds shards of 'train', none of 'val'" in message("", "val")
    assert "no shard" in message("train-{0,1}.tar")
    assert "unbalanced brace" in message("train-{0,1.tar")
    (tmp_path / "z").mkdir()
    assert "holds no shards" in message("z")
    (tmp_path / "z" / "z.tar").write_bytes(gzip.compress(shard.read_bytes()))
    assert "uncompressed" in message("z")
    (tmp_path / "z" / "z.tar").unlink()
    os.mkfifo(tmp_path / "z" / "z.tar")
    with no_hang():
        assert "it is a named pipe, not a file" in message("z")
    (tmp_path / "z" / "z.tar").unlink()
    end = len(shard.read_bytes().rstrip(b"\0"))
    for cut in (2000, 512 * 10, end - 700, end, -(-end // 512) * 512):
        (tmp_path / "z" / "z.tar").write_bytes(shard.read_bytes()[:cut])
        assert "is it complete" in message("z"), cut
    data = bytearray(shard.read_bytes())
    data[data.index(b"s002") + 100] ^= 255  # within a header, which has a checksum
    (tmp_path / "z" / "z.tar").write_bytes(data)
    assert "damaged at byte" in message("z")


# CIFAR


@pytest.mark.parametrize("kind", ["CIFAR10", "CIFAR100"])
def test_cifar(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny data set in torchvision's files, whose checksums it is made to expect."""
    dataset = getattr(torchvision.datasets, kind)
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    names = [f"class {i}" for i in range(4)]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    labels = "labels" if kind == "CIFAR10" else "fine_labels"

    def checked(name: str, value: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    train = checked("batch", {"data": pixels.reshape(6, -1), labels: [0, 1, 2, 3, 0, 1]})
    monkeypatch.setattr(dataset, "train_list", [train])
    monkeypatch.setattr(dataset, "test_list", [])
    name, digest = checked("names", {dataset.meta["key"]: names})
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": dataset.meta["key"], "md5": digest})
    source = open_source(kind.lower(), SourceOptions(str(tmp_path), "train"))
    assert source.class_names == tuple(names) and source.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert np.array_equal(source.read(4), pixels[4].transpose(1, 2, 0)) and source.name(4) == f"{kind.lower()}/train/4"
    with pytest.raises(UserError, match=r"--cfg\.classes"):
        open_source(kind.lower(), SourceOptions(str(tmp_path), "train", "classes.txt"))


def test_missing_cifar_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CIFAR10 is not in .*--cfg\.download=1"):
        open_source("cifar", SourceOptions(str(tmp_path), "train"))
