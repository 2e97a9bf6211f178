"""A smaller JPEG behind the image: the crops that it serves, and everybody else's view of the sample."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ffcv_train.data.convert.encoding import encode_jpeg
from ffcv_train.data.convert.write import WriteConfig
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop, crop_parameters
from ffcv_train.data.kernels.decode import BAD_LEVEL, OK, Scratch, decode_samples
from ffcv_train.data.kernels.level import LEVEL_MAGIC, is_smaller, level_of, level_size, with_level
from ffcv_train.data.kernels.resample import resize
from ffcv_train.data.loader import Loader
from ffcv_train.data.write import write_dataset
from ffcv_train.system.errors import UserError

PHOTOGRAPHS = load_sample_images().images
RANDOM = RandomResizedCrop((0.35, 1.0), flip=0.5)


def stored(image: np.ndarray, share: float) -> tuple[bytes, bytes]:
    """The image's JPEG, alone and with a level of that share of its sides."""
    jpeg = encode_jpeg(image, 95)
    smaller = resize(image, *level_size(*image.shape[:2], share), "bicubic")
    return jpeg, with_level(jpeg, encode_jpeg(smaller, 95))


def decoded(data: bytes, shape: tuple[int, ...], crop: RandomResizedCrop | CenterCrop, size: int, n: int = 8) -> tuple:
    """`n` crops of a stored sample (uint8 [n, R, R, 3]) and the decoder's verdict."""
    sample = np.frombuffer(data, np.uint8)
    height, width = shape[:2]
    scratch = Scratch(height * width * 3, len(data), max(height, width), size)
    target = np.zeros((n, size, size, 3), np.uint8)
    table = (np.full(n, sample.ctypes.data, np.uint64), np.full(n, len(data)), np.zeros(n, np.uint8))
    sides = (np.full(n, height), np.full(n, width))
    views = (crop_parameters(crop)[None], np.array([size]))
    flat = target.reshape(-1)
    found = decode_samples((*table, *sides, np.arange(n)), 0, 0, views, flat, 0, n, scratch.arguments)
    return target, found[1]


@pytest.mark.parametrize("share", [0.5, 0.65, 0.75])
@pytest.mark.parametrize("index", [0, 1])
def test_crops_of_the_level_are_those_of_the_image(share: float, index: int) -> None:
    image = PHOTOGRAPHS[index]
    jpeg, both = stored(image, share)
    size = int(min(image.shape[:2]) * share * 0.5)
    plain, _ = decoded(jpeg, image.shape, RANDOM, size)
    level, problem = decoded(both, image.shape, RANDOM, size)
    assert problem == OK
    difference = level.astype(int) - plain
    assert 0 < np.abs(difference).mean() < 2.5
    assert abs(difference.mean()) < 0.1
    # A shift by half a pixel of the target would cost more than the level does.
    shifted = np.abs(np.roll(level, 1, 2).astype(int) - plain).mean()
    assert np.abs(difference).mean() < 0.5 * shifted


def test_a_crop_that_needs_the_image_takes_it() -> None:
    image = PHOTOGRAPHS[0]
    jpeg, both = stored(image, 0.65)
    size = int(min(image.shape[:2]) * 0.66)
    assert np.array_equal(decoded(both, image.shape, RANDOM, size)[0], decoded(jpeg, image.shape, RANDOM, size)[0])
    for rule in ("torchvision", "ffcv"):
        crop = CenterCrop(0.9, rule=rule)
        assert np.array_equal(decoded(both, image.shape, crop, 32)[0], decoded(jpeg, image.shape, crop, 32)[0])


def test_other_readers_see_the_image() -> None:
    image = PHOTOGRAPHS[0]
    jpeg, both = stored(image, 0.5)
    pillow = [np.asarray(Image.open(io.BytesIO(data))) for data in (jpeg, both)]
    assert np.array_equal(*pillow)
    assert bytes(level_of(np.frombuffer(jpeg, np.uint8))) == b""
    level = bytes(level_of(np.frombuffer(both, np.uint8)))
    assert both == jpeg + level + len(level).to_bytes(4, "little") + LEVEL_MAGIC
    assert Image.open(io.BytesIO(level)).size == (round(image.shape[1] * 0.5), round(image.shape[0] * 0.5))


def test_what_is_no_level_of_the_image_is_refused() -> None:
    image = PHOTOGRAPHS[0]
    jpeg, both = stored(image, 0.5)
    turned = with_level(jpeg, encode_jpeg(np.ascontiguousarray(image[: image.shape[0] // 3]), 90))
    larger = with_level(jpeg, encode_jpeg(resize(image, image.shape[0] + 8, image.shape[1] + 8, "bilinear"), 90))
    cut = bytearray(both)
    cut[len(jpeg) : len(jpeg) + 2] = b"\0\0"
    for data in (turned, larger, bytes(cut), with_level(jpeg, b"no JPEG")):
        assert decoded(data, image.shape, RANDOM, 16)[1] == BAD_LEVEL
    # A length that reaches beyond the sample is no level's: the image is whole nevertheless.
    beyond = jpeg + (len(jpeg) + 1).to_bytes(4, "little") + LEVEL_MAGIC
    assert np.array_equal(decoded(beyond, image.shape, RANDOM, 16)[0], decoded(jpeg, image.shape, RANDOM, 16)[0])


@pytest.mark.parametrize("share", [0.3, 0.5, 0.65, 0.75, 0.99])
def test_every_rounded_size_is_one_of_the_image(share: float) -> None:
    for height, width in ((1, 1), (1, 900), (375, 500), (333, 77), (4000, 3)):
        assert is_smaller(*level_size(height, width, share), height, width)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One data set without and with a level."""
    folder = tmp_path_factory.mktemp("level")
    for name, image in zip(("a", "b"), PHOTOGRAPHS, strict=True):
        (folder / "images/train" / name).mkdir(parents=True)
        for top in (0, 100):
            Image.fromarray(image[top : top + 300, top : top + 400]).save(folder / f"images/train/{name}/{top}.png")
    paths = []
    for level in (0.0, 0.65):
        paths.append(folder / f"{level}.beton")
        write_dataset(
            WriteConfig(
                data_dir=str(folder / "images"), write_path=str(paths[-1]), write_mode="jpg", level=level, num_workers=1
            )
        )
    return paths[0], paths[1]


def test_the_writer_adds_it_and_the_loader_takes_it(written: tuple[Path, Path]) -> None:
    plain, level = (open_beton(path) for path in written)
    assert np.array_equal(plain.heights, level.heights) and (level.sizes > 1.2 * plain.sizes).all()
    assert level.sidecar is not None and level.sidecar["settings"]["level"] == 0.65
    for beton in (plain, level):
        verify(beton.path)
    images = []
    for beton in (plain, level):
        with Loader(beton, 4, crop=RandomResizedCrop((0.6, 1.0)), resolution=96, order="sequential") as loader:
            images.append(next(iter(loader)).images.numpy().copy())
    assert images[0].shape == images[1].shape
    assert 0 < np.abs(images[0].astype(float) - images[1]).mean() < 2.5


def test_evaluation_never_takes_it(written: tuple[Path, Path]) -> None:
    images = []
    for path in written:
        with Loader(open_beton(path), 4, crop=CenterCrop(), resolution=96, order="sequential") as loader:
            images.append(next(iter(loader)).images.numpy().copy())
    assert np.array_equal(*images)


def test_ffcv_reads_the_image(written: tuple[Path, Path]) -> None:
    program = (
        "import sys, numpy as np; from ffcv.loader import Loader, OrderOption; "
        "from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as C; from ffcv.fields.basics import IntDecoder; "
        "found = [next(iter(Loader(path, 4, 1, OrderOption.SEQUENTIAL, "
        "pipelines={'image': [C((96, 96), 0.9)], 'label': [IntDecoder()]})))[0].copy() for path in sys.argv[1:]]; "
        "assert np.array_equal(*found)"
    )
    done = subprocess.run([sys.executable, "-c", program, *written], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_verify_looks_at_it(written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.beton"
    beton = open_beton(written[1])
    for what, words in ((4, "no smaller level of 260 × 195"), (0, "no smaller level of 260 × 195")):
        content = bytearray(written[1].read_bytes())
        end = int(beton.ptrs[1] + beton.sizes[1])
        if what:
            content[end - what] ^= 1  # the trailer is none
        else:
            length = int.from_bytes(content[end - 8 : end - 4], "little")
            content[end - 8 - length] = 0  # nor is the JPEG
        copy.write_bytes(content)
        sidecar_path(copy).write_bytes(sidecar_path(written[1]).read_bytes())
        with pytest.raises(UserError, match="1 of 4 samples"):
            verify(copy)
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("level", [-0.5, 1.0, float("nan")])
def test_a_level_is_smaller_than_the_image(level: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="level"):
        write_dataset(WriteConfig(data_dir=str(tmp_path), write_path=str(tmp_path / "a.beton"), level=level))
