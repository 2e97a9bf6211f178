"""Kinds of image files that suites of other libraries hold and Pillow refuses or misreads, synthesised."""

import io
import itertools
import json
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_train.data.convert import write as write_module
from ffcv_train.data.convert.worker import write_samples
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.format.layout import EncodedSample
from ffcv_train.data.format.pagefile import MIN_PAGE_SIZE, PageFile
from ffcv_train.data.format.verify import verify
from ffcv_train.data.kernels.crops import CenterCrop
from ffcv_train.data.loader import Loader
from ffcv_train.data.loading.image_worker import Failure
from ffcv_train.data.loading.pictures import cut_pictures, open_pictures
from ffcv_train.data.sources import image_file
from ffcv_train.data.sources.image_file import ImageError, decode, decode_rgb
from ffcv_train.evaluation.gradcam_images import read_image
from ffcv_train.system import resources
from ffcv_train.system.errors import UserError
from tests.support.kills import InProcess
from tests.support.odd_images import packed_12_bit, tiff, with_jpeg_segments, with_png_chunks
from tests.support.photographs import crops_of_photographs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PHOTO = crops_of_photographs(1, 120, 160)[0][:100, :120]
HEIGHT, WIDTH = PHOTO.shape[:2]
GREY = PHOTO[:, :, 1]


def saved(image: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


# TIFF


def test_planes_of_16_bits() -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    planes = [np.ascontiguousarray(colours[:, :, c]).tobytes() for c in range(3)]
    decoded = decode_rgb(tiff(HEIGHT, WIDTH, planes, [16] * 3, 2, planar=[2]))
    assert np.abs(decoded - colours / 257).max() <= 0.5


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_of_all_depths_and_both_signs(bits: int, white_is_zero: bool) -> None:
    largest = (1 << bits) - 1
    values = np.random.default_rng(bits).integers(0, largest + 1, (HEIGHT, WIDTH)).astype(np.uint16)
    values[0, :2] = 0, largest
    stored = largest - values if white_is_zero else values
    data = {8: stored.astype(np.uint8).tobytes(), 12: packed_12_bit(stored), 16: stored.tobytes()}[bits]
    decoded = decode_rgb(tiff(HEIGHT, WIDTH, [data], [bits], 0 if white_is_zero else 1))
    assert np.abs(decoded - rgb(values) * (255 / largest)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("factor", [1, 257])
def test_colour_maps_of_8_and_16_bits(factor: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    data = tiff(HEIGHT, WIDTH, [GREY.tobytes()], [8], 3, colour_map=(colours.T.reshape(-1) * factor).tolist())
    assert np.array_equal(decode_rgb(data), colours[GREY])


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_associated_alpha(bits: int) -> None:
    """Grey is stored times alpha (TIFF 6.0, ExtraSamples 1); where alpha is 1 that is the grey itself."""
    kind = {8: np.uint8, 16: np.uint16}[bits]
    grey = GREY.astype(kind) * (1 if bits == 8 else 257)
    alpha = np.full_like(grey, (1 << bits) - 1)
    data = tiff(HEIGHT, WIDTH, [np.stack([grey, alpha], -1).tobytes()], [bits] * 2, 1, extra_samples=[1])
    assert np.abs(decode_rgb(data).astype(int) - rgb(GREY)).max() <= 1


def test_half_transparent_grey_is_what_it_was() -> None:
    alpha = np.full_like(GREY, 128)
    stored = (GREY.astype(int) * 128 / 255).round().astype(np.uint8)
    data = tiff(HEIGHT, WIDTH, [np.stack([stored, alpha], -1).tobytes()], [8, 8], 1, extra_samples=[1])
    assert np.abs(decode_rgb(data).astype(int) - rgb(GREY)).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["planes", "12 bits"])
def test_odd_tiffs_are_turned_upright(kind: str, orientation: int) -> None:
    stored = {1: PHOTO, 3: PHOTO[::-1, ::-1], 6: PHOTO.transpose(1, 0, 2)[::-1]}[orientation]
    height, width = stored.shape[:2]
    if kind == "planes":
        planes = [(stored[:, :, c].astype(np.uint16) * 257).tobytes() for c in range(3)]
        data = tiff(height, width, planes, [16] * 3, 2, planar=[2], orientation=[orientation])
        expected = PHOTO
    else:
        values = stored[:, :, 1].astype(np.uint16) * 16
        data = tiff(height, width, [packed_12_bit(values)], [12], 1, orientation=[orientation])
        expected = rgb(GREY)
    assert np.abs(decode_rgb(data).astype(int) - expected).max() <= 1


# Metadata that other readers skip

PNG = saved(PHOTO, "PNG")
LARGE = bytes(2 << 20)
PNG_CHUNKS = {
    "compressed text": [(b"zTXt", b"k\0\0" + zlib.compress(LARGE))],
    "compressed international text": [(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(LARGE))],
    "much text": [(b"tEXt", b"k%d\0" % i + bytes(900_000)) for i in range(80)],
    "profile": [(b"iCCP", b"k\0\0" + zlib.compress(LARGE))],
    "unknown compression": [(b"zTXt", b"k\0\5garbage")],
    "short pHYs": [(b"pHYs", b"ab")],
    "short gAMA": [(b"gAMA", b"a")],
    "short cHRM": [(b"cHRM", b"a")],
    "broken Exif": [(b"eXIf", b"a")],
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_png_with_large_or_broken_metadata(name: str) -> None:
    assert np.array_equal(decode_rgb(with_png_chunks(PNG, PNG_CHUNKS[name])), PHOTO)


def test_png_whose_text_fails_its_checksum() -> None:
    data = bytearray(with_png_chunks(PNG, [(b"tEXt", b"k\0value")]))
    data[33 + 8 + 4] ^= 1
    assert np.array_equal(decode_rgb(bytes(data)), PHOTO)
    pixels = bytearray(data)
    pixels[pixels.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match="cannot be read"):
        decode_rgb(bytes(pixels))


def test_png_keeps_its_orientation_and_palette_beside_broken_texts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = saved(np.ascontiguousarray(PHOTO[::-1, ::-1]), "PNG", exif=exif)
    assert np.array_equal(decode_rgb(with_png_chunks(data, PNG_CHUNKS["profile"])), PHOTO)


JPEG = saved(PHOTO, "JPEG", quality=95)
JPEG_SEGMENTS = {
    "short profile": (0xE2, b"ICC_PROFILE\0"),
    "profile out of range": (0xE2, b"ICC_PROFILE\0\1\5xx"),
    "broken index of pictures": (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "short JFIF": (0xE0, b"JFIF\0"),
    "short Adobe": (0xEE, b"Adobe"),
    "broken Photoshop block": (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
    "empty Exif": (0xE1, b"Exif\0\0"),
    "broken Exif": (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xffgarbage"),
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_jpeg_with_broken_metadata(name: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(JPEG)))
    decoded = decode(with_jpeg_segments(JPEG, [JPEG_SEGMENTS[name]]))
    assert np.array_equal(decoded.pixels, expected) and decoded.damage == ""


# What is refused, and as what


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG[:40], "a PNG"),
        (JPEG[:30], "a JPEG"),
        (tiff(4, 4, [bytes(128)], [64], 1), "a TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIF file"),
        (b"\xff\x0a" + bytes(50), "a JPEG XL file"),
        (b"\x76\x2f\x31\x01" + bytes(50), "an OpenEXR file"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    ],
)
def test_what_is_an_image_is_not_called_none(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_rgb(data)
    assert "it is not an image" not in str(caught.value)
    assert kind in str(caught.value) or "truncated" in str(caught.value).lower()


def test_what_is_none_is_called_so() -> None:
    for data in (b"", b"hello", b"\0" * 100):
        with pytest.raises(ImageError, match="it is not an image"):
            decode_rgb(data)


def many_scans(count: int) -> bytes:
    """A progressive JPEG that refines one coefficient again and again, at no cost of bytes."""
    data = saved(PHOTO[:16, :16], "JPEG", progressive=True, quality=90)
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    scan = data[starts[0] : starts[1]]
    scan = scan[: scan.index(b"\xff\xc4")] if b"\xff\xc4" in scan else scan
    return data[: starts[0]] + scan * count + data[starts[0] :]


def test_thousands_of_scans_are_refused() -> None:
    with pytest.raises(ImageError, match=r"has 20\d\d scans, which may take hours"):
        decode_rgb(many_scans(2000))


def test_scans_of_previews_and_of_what_follows_do_not_count() -> None:
    preview = with_jpeg_segments(JPEG, [(0xE1, b"\xff\xda" * 1000)]) + b"\xff\xda\0\2" * 1000
    assert np.array_equal(decode_rgb(preview), np.asarray(Image.open(io.BytesIO(JPEG))))


def flat_png(height: int, width: int) -> bytes:
    """A bilevel PNG whose pixels are all one, of few bytes."""
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_pixels_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flat_png(1000, 2000)
    with pytest.raises(ImageError, match=r"has 2000 × 1000 pixels, which are 2 million and more than the 1 million"):
        decode(data, max_pixels=1_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # Pillow's own is out of the way
    assert decode(data, max_pixels=2_000_000).pixels.shape == (1000, 2000, 3)
    assert Image.MAX_IMAGE_PIXELS == 500_000
    monkeypatch.setattr(image_file, "_LARGE", 1_000_000)
    monkeypatch.setattr(resources, "available_bytes", lambda: 10 << 20)
    with pytest.raises(ImageError, match=r"take 0\.0 GiB to decode, and 0\.0 GiB are available"):
        decode(data, max_pixels=2_000_000)


# Damage


def cut_out(data: bytes, start: int, count: int = 1000) -> bytes:
    return data[:start] + data[start + count :]


def damaged_photographs() -> list[bytes]:
    photographs = [saved(photo, "JPEG", quality=90) for photo in crops_of_photographs(10, 200, 300)]
    return [cut_out(data, 700 + len(data) * 5 * number // 100) for number, data in enumerate(photographs, 1)]


def test_what_pillow_papers_over_is_said() -> None:
    for data in damaged_photographs():
        assert decode(data).damage.startswith("Corrupt JPEG data")
        assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_damaged_cmyk_is_said_too() -> None:
    inks = np.concatenate([PHOTO, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], 2)
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()).save(buffer, "JPEG", quality=90)
    assert decode(buffer.getvalue()).damage == ""
    assert decode(cut_out(buffer.getvalue(), 3000)).damage.startswith("Corrupt JPEG data")


def test_bytes_left_over_before_the_end_harm_nothing() -> None:
    data = JPEG[:-2] + b"\1\2\3" * 20 + JPEG[-2:]
    decoded = decode(data)
    assert decoded.damage == "" and np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(JPEG))))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sound images, one damaged JPEG, in one class."""
    monkeypatch.setattr(write_module, "WorkerPool", InProcess)
    root = tmp_path / "images" / "a"
    root.mkdir(parents=True)
    for name, data in (("0.jpg", JPEG), ("1.jpg", damaged_photographs()[3]), ("2.png", PNG)):
        (root / name).write_bytes(data)
    return root.parent


def write(folder: Path, **options: object) -> Path:
    path = folder.parent / "a.beton"
    return convert(WriteConfig(data_dir=str(folder), write_path=str(path), num_workers=1, **options))


def test_conversion_stops_at_damage(folder: Path) -> None:
    with pytest.raises(UserError, match=r"a/1\.jpg .* is a damaged JPEG \(Corrupt JPEG data: .*--cfg\.on_error=keep"):
        write(folder)


def test_conversion_skips_damage(folder: Path) -> None:
    sidecar = open_beton(write(folder, on_error="skip")).sidecar
    assert sidecar is not None and sidecar["files"] == ["a/0.jpg", "a/2.png"]
    assert [item["name"] for item in sidecar["skipped"]] == ["a/1.jpg"]
    assert "damaged JPEG (Corrupt JPEG data" in sidecar["skipped"][0]["reason"]


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
def test_loaders_stop_at_damage_whatever_the_format(folder: Path, tmp_path: Path, kind: str) -> None:
    """Where on_error would have to be asked for to keep it, nothing trains on it unasked."""
    path, damaged = folder, (folder / "a/1.jpg").read_bytes()
    if kind == "zip":
        path = tmp_path / "val.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(folder / "a/1.jpg", "a/1.jpg")
        (tmp_path / "val_map.txt").write_text("a/1.jpg\t0\n")
    elif kind == "beton":
        path = foreign_beton(tmp_path / "b.beton", [damaged], *np.asarray(Image.open(io.BytesIO(damaged))).shape[:2])
    with loader(path) as batches, pytest.raises(UserError, match="is a damaged JPEG") as caught:
        list(batches)
    if kind != "beton":
        assert re.search(r"a/1\.jpg .* \(Corrupt JPEG data: .*on_error=skip", str(caught.value))


def test_damage_is_left_out_of_predictions(folder: Path) -> None:
    cuts = list(cut_pictures(open_pictures([folder]), CenterCrop(1.0), 32, 1))
    assert [isinstance(cut, Failure) for cut in cuts] == [False, True, False]
    assert cuts[1].sentence.startswith(f"{folder}/a/1.jpg is a damaged JPEG (Corrupt JPEG data")
    with pytest.raises(UserError, match=r"a/1\.jpg is a damaged JPEG \(Corrupt JPEG data"):
        read_image(folder / "a/1.jpg")


def test_conversion_keeps_damage_and_lists_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder, on_error="keep", write_mode="raw")
    assert "1 damaged, listed in a.beton.json" in capsys.readouterr().out
    beton = open_beton(path)
    assert beton.sidecar is not None and beton.sidecar["skipped"] == []
    (item,) = beton.sidecar["damaged"]
    assert item["name"] == "a/1.jpg" and item["reason"].startswith("Corrupt JPEG data")
    start, size = int(beton.ptrs[1]), int(beton.sizes[1])
    expected = np.asarray(Image.open(folder / "a" / "1.jpg"))
    assert path.read_bytes()[start : start + size] == expected.tobytes()
    (folder / "a" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="it is not an image"):
        write(folder, on_error="keep")


def test_large_images_are_converted_where_the_limit_is_raised(folder: Path) -> None:
    (folder / "a" / "1.jpg").unlink()
    (folder / "a" / "3.png").write_bytes(flat_png(2000, 1500))
    with pytest.raises(UserError, match=r"a/3\.png .* 3 million and more than the 2 million .*--cfg\.max_megapixels"):
        write(folder, max_megapixels=2, max_resolution=100)
    beton = open_beton(write(folder, max_megapixels=4, max_resolution=100))
    assert (int(beton.heights[2]), int(beton.widths[2])) == (100, 75)


def test_json_of_the_sidecar_is_plain(folder: Path) -> None:
    path = write(folder, on_error="keep")
    assert set(json.loads(Path(f"{path}.json").read_text())["damaged"][0]) == {"name", "reason"}
    assert list(itertools.chain(folder.glob("*.tmp-*"))) == []


# In a .beton that another program wrote


def foreign_beton(path: Path, jpegs: list[bytes], height: int, width: int) -> Path:
    pages = PageFile(path, len(jpegs), MIN_PAGE_SIZE)
    samples = [EncodedSample(i, 0, height, width, len(data), 0) for i, data in enumerate(jpegs)]
    positions = [pages.append(sample, 0) for sample in samples]
    pages.finish()
    with path.open("r+b") as file:
        write_samples(file.fileno(), positions, jpegs)
    return path


def cmyk_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (WIDTH, HEIGHT), (1, 2, 3, 4)).save(buffer, "JPEG")
    return buffer.getvalue()


def of_frame(marker: int, precision: int = 8) -> bytes:
    """The sound JPEG with another kind of frame: decoders go by this and refuse."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 1] + bytes([marker]) + JPEG[at + 2 : at + 4] + bytes([precision]) + JPEG[at + 5 :]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (cmyk_jpeg(), "CMYK"),
        (of_frame(0xC3), "lossless"),
        (of_frame(0xC1, 12), "12-bit"),
        (of_frame(0xCA), "arithmetic-coded or hierarchical"),
    ],
)
def test_kinds_that_the_loader_does_not_decode_are_not_called_damaged(
    tmp_path: Path, data: bytes, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign_beton(tmp_path / "a.beton", [data], HEIGHT, WIDTH)
    with pytest.raises(UserError, match="1 of 1 samples"):
        verify(path)
    assert f"is a JPEG of an unsupported kind ({kind})" in capsys.readouterr().out
    with loader(path) as batches, pytest.raises(UserError, match=rf"unsupported kind \({kind}\)"):
        list(batches)
    damaged = foreign_beton(tmp_path / "b.beton", [cut_out(JPEG, 3000)], HEIGHT, WIDTH)
    with loader(damaged) as batches, pytest.raises(UserError, match="is a damaged JPEG"):
        list(batches)


def loader(path: Path, **options: object) -> Loader:
    return Loader(path, 1, crop=CenterCrop(1.0), resolution=32, device="cpu", num_workers=1, **options)  # type: ignore[arg-type]


def test_workers_of_folders_say_nothing_that_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.fromarray(GREY)
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "a" / "0.png", transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_rgb((tmp_path / "a" / "0.png").read_bytes())
    assert caught, "Pillow no longer warns of this kind"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # which the worker, a fork, inherits: its image would be refused
        with loader(tmp_path) as batches:
            assert len(list(batches)) == 1
