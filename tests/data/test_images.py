"""Odd image files against NumPy references, shrinking against block means, JPEGs against FFCV's own encoder."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ffcv_train.data.convert.encoding import Encoding, encode_image, encode_jpeg, restart_interval, shrink, stores_jpeg
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode, decode_rgb
from tests.support.photographs import crops_of_photographs

# Pillow warns of odd palettes and of broken Exif blocks; the writer silences it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PHOTO = crops_of_photographs(1, 120, 160)[0]
HEIGHT, WIDTH = PHOTO.shape[:2]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b).mean())


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_rgb_is_unchanged(kind: str) -> None:
    assert np.array_equal(decode_rgb(saved(Image.fromarray(PHOTO), kind)), PHOTO)


JPEG_OPTIONS = (
    {},
    {"subsampling": 0},
    {"subsampling": 1},
    {"progressive": True},
    {"restart_marker_blocks": 3},
    {"keep_rgb": True},
    {"optimize": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"},
)


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_rgb_jpeg_equals_opencv_and_pillow(options: dict) -> None:
    data = saved(Image.fromarray(PHOTO), "JPEG", **{"quality": 90, **options})
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.array_equal(decode_rgb(data), reference)
    assert np.array_equal(decode_rgb(data), by_pillow(data))


def by_pillow(data: bytes) -> np.ndarray | None:
    """Pillow's own pixels, or None where it refuses."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def test_first_picture_of_several_in_a_jpeg() -> None:
    """MPO: what some cameras and telephones write."""
    data = saved(Image.fromarray(PHOTO), "MPO", save_all=True, append_images=[Image.fromarray(255 - PHOTO)], quality=90)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.array_equal(decode_rgb(data), by_pillow(data))


def damaged_jpegs(count: int) -> Iterator[bytes]:
    """Small JPEGs of all kinds with bits, bytes and markers changed, cut out or put in."""
    generator = random.Random(0)
    photo = Image.fromarray(PHOTO[:50, :70])
    sound = [saved(photo, "JPEG", quality=90, **options) for options in JPEG_OPTIONS]
    sound += [saved(photo.convert(mode), "JPEG", quality=90) for mode in ("L", "CMYK")]
    for _ in range(count):
        data = bytearray(generator.choice(sound))
        for _ in range(generator.choice((1, 1, 3))):
            at = generator.randrange(len(data))
            change = generator.randrange(5)
            if change == 0:
                data[at] ^= 1 << generator.randrange(8)
            elif change == 1:
                data[at : at + 2] = bytes([0xFF, generator.choice((0, 0xC0, 0xC2, 0xD0, 0xD9, 0xDA, 0xDD, 0xE1, 0xEE))])
            elif change == 2:
                del data[at : at + generator.randint(1, 20)]
            elif change == 3:
                data[at:at] = generator.randbytes(generator.randint(1, 20))
            else:
                del data[max(at, 2) :]
        yield bytes(data)


def test_damaged_jpegs_are_refused_where_pillow_does() -> None:
    outcomes = {"refused": 0, "decoded": 0}
    for data in damaged_jpegs(2000):
        expected = by_pillow(data)
        if expected is None:
            outcomes["refused"] += 1
            with pytest.raises(ImageError, match="cannot be read"):
                decode(data)
        else:
            outcomes["decoded"] += 1
            assert np.array_equal(decode(data).pixels, expected) or _turned(data)
    assert min(outcomes.values()) > 400


def _turned(data: bytes) -> bool:
    """Whether damage made an Exif orientation, which `by_pillow` does not apply."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(0x0112, 1) != 1


def test_greyscale() -> None:
    grey = Image.fromarray(PHOTO[:, :, 1])
    assert np.array_equal(decode_rgb(saved(grey, "PNG")), grey_to_rgb(PHOTO[:, :, 1]))
    data = saved(grey, "JPEG", quality=80)
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(decode_rgb(data), grey_to_rgb(reference))


def test_bilevel() -> None:
    bits = PHOTO[:, :, 0] > 100
    assert np.array_equal(decode_rgb(saved(Image.fromarray(bits), "PNG")), grey_to_rgb(bits * 255))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palette(transparency: int | bytes | None) -> None:
    indices = (PHOTO[:, :, 0] // 4).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (64, 3), np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decode_rgb(saved(image, "PNG", **options)), colours[indices])


def test_alpha_is_dropped_not_blended() -> None:
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    rgba = np.concatenate([PHOTO, alpha], axis=2)
    assert np.array_equal(decode_rgb(saved(Image.fromarray(rgba), "PNG")), PHOTO)
    grey_alpha = np.concatenate([PHOTO[:, :, :1], alpha], axis=2)
    image = Image.frombytes("LA", (WIDTH, HEIGHT), grey_alpha.tobytes())
    assert np.array_equal(decode_rgb(saved(image, "PNG")), grey_to_rgb(PHOTO[:, :, 0]))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_including_adobes_inverted_jpeg(kind: str) -> None:
    """Inks (255 − R, 255 − G, 255 − B, 0) are the photograph; as JPEG, Pillow writes them inverted, as Adobe does."""
    inks = np.concatenate([255 - PHOTO, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    data = saved(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()), kind, quality=100, subsampling=0)
    if kind == "JPEG":
        assert b"Adobe" in data
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "CMYK"
    assert mean_difference(decode_rgb(data), PHOTO) < 2


def test_cmyk_black_ink() -> None:
    inks = np.concatenate([np.full((8, 8, 3), 51, np.uint8), np.full((8, 8, 1), 102, np.uint8)], axis=2)
    decoded = decode_rgb(saved(Image.frombytes("CMYK", (8, 8), inks.tobytes()), "TIFF"))
    assert np.abs(decoded.astype(int) - round((255 - 51) * (255 - 102) / 255)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 50).reshape(50, 64).astype(np.uint16)
    assert np.array_equal(decode_rgb(saved(Image.fromarray(ramp), kind)), grey_to_rgb(np.rint(ramp / 257)))


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_16_bit_colour_is_scaled(kind: str) -> None:
    """Pillow takes the high byte, which is within one level of exact scaling."""
    colour = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    encoded, data = cv2.imencode(kind, colour[:, :, ::-1])
    assert encoded
    assert np.abs(decode_rgb(data.tobytes()) - colour / 257).max() <= 1


@pytest.mark.parametrize("pixels", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_unknown_ranges_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match="convert it to 8 or 16 bits"):
        decode_rgb(saved(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        # EXIF 2.3: where row 0 and column 0 of the stored image are on the upright one.
        (1, PHOTO),
        (2, PHOTO[:, ::-1]),
        (3, PHOTO[::-1, ::-1]),
        (4, PHOTO[::-1]),
        (5, PHOTO.transpose(1, 0, 2)),
        (6, PHOTO.transpose(1, 0, 2)[::-1]),
        (7, PHOTO[::-1, ::-1].transpose(1, 0, 2)),
        (8, PHOTO.transpose(1, 0, 2)[:, ::-1]),
    ],
)
def test_exif_orientation(orientation: int, stored: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    assert np.array_equal(decode_rgb(saved(image, "PNG", exif=exif)), PHOTO)
    data = saved(image, "JPEG", quality=95, exif=exif)
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.array_equal(decode_rgb(data), reference)


def test_broken_exif_does_not_matter() -> None:
    data = saved(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode_rgb(data).shape == PHOTO.shape


def test_first_frame_counts() -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(data), PHOTO)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "progressive": True}])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9, 0.999])
def test_truncated_jpeg(options: dict, share: float) -> None:
    data = saved(Image.fromarray(PHOTO), "JPEG", **options)
    with pytest.raises(ImageError, match="cannot be read"):
        decode_rgb(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP"])
def test_truncated_others(kind: str) -> None:
    data = saved(Image.fromarray(PHOTO), kind)
    with pytest.raises(ImageError, match="cannot be read"):
        decode_rgb(data[: len(data) // 2])


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_decode_or_are_refused(tail: bytes, head: bytes) -> None:
    try:
        assert decode_rgb(head + tail).dtype == np.uint8
    except ImageError as error:
        assert str(error)


def test_decompression_bomb_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    with pytest.raises(ImageError, match="pixels"):
        decode_rgb(data)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_shrink_is_the_mean_over_areas(factor: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    means = image.reshape(60 // factor, factor, 90 // factor, factor, 3).mean((1, 3))
    assert np.abs(shrink(image, 90 // factor) - means).max() <= 1


def area_weights(source: int, target: int) -> np.ndarray:
    """[target, source]: how much of each target pixel each source pixel covers."""
    edges = np.arange(target + 1) * source / target
    overlaps = np.minimum(edges[1:, None], np.arange(1, source + 1)) - np.maximum(edges[:-1, None], np.arange(source))
    return overlaps.clip(0) * target / source


@given(height=st.integers(1, 150), width=st.integers(1, 150), limit=st.integers(1, 150), reverse=st.booleans())
@settings(max_examples=200, deadline=None)
def test_shrink_weighs_pixels_by_area(height: int, width: int, limit: int, reverse: bool) -> None:
    """Within rounding of float64, and within a level of OpenCV, of which FFCV makes use; for RGB and views of BGR."""
    photo = np.tile(PHOTO, (2, 2, 1))[:height, :width]
    image = np.ascontiguousarray(photo[:, :, ::-1])[:, :, ::-1] if reverse else np.ascontiguousarray(photo)
    shrunk = shrink(image, limit)
    h, w = shrunk.shape[:2]
    exact = np.einsum("yY,YXc,xX->yxc", area_weights(height, h), photo, area_weights(width, w), optimize=True)
    assert np.abs(shrunk - exact).max() < 0.501
    assert np.abs(shrunk.astype(int) - cv2.resize(photo, (w, h), interpolation=cv2.INTER_AREA)).max() <= 1
    assert contiguous(shrunk).flags.c_contiguous and np.array_equal(contiguous(shrunk), shrunk)


@given(height=st.integers(1, 400), width=st.integers(1, 400), limit=st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_shrink_keeps_shape_and_never_enlarges(height: int, width: int, limit: int) -> None:
    shrunk = shrink(np.zeros((height, width, 3), np.uint8), limit)
    scale = min(1.0, limit / max(height, width))
    assert max(shrunk.shape) <= max(limit, 3)
    assert abs(shrunk.shape[0] - max(1, height * scale)) <= 0.5 and abs(shrunk.shape[1] - max(1, width * scale)) <= 0.5
    assert max(shrunk.shape[:2]) == min(limit, max(height, width))
    assert shrink(np.zeros((height, width, 3), np.uint8), 0).shape == (height, width, 3)


@pytest.mark.parametrize("quality", [50, 90, 100])
def test_jpeg_equals_ffcvs(quality: int) -> None:
    from ffcv.fields import rgb_image

    reference = rgb_image.encode_jpeg(PHOTO, quality).tobytes()
    assert encode_jpeg(PHOTO, quality, tiles=False) == reference
    view_of_bgr = np.ascontiguousarray(PHOTO[:, :, ::-1])[:, :, ::-1]
    assert encode_jpeg(view_of_bgr, quality, tiles=False) == reference


@pytest.mark.parametrize("width", [1, 16, 17, 100, 333, 368, 496, 500, 640])
def test_tiles_change_no_pixel_and_form_a_grid(width: int) -> None:
    photo = np.tile(PHOTO, (1, 2, 1))[:90, :width]
    plain, tiled = (encode_jpeg(photo, 90, tiles) for tiles in (False, True))
    assert np.array_equal(decode_rgb(plain), decode_rgb(tiled))
    per_row = -(-width // 16)
    assert per_row % restart_interval(width) == 0
    assert restart_interval(width) <= 5, "a crop needs few of the tiles of a whole row"
    assert len(tiled) < 1.06 * len(plain) + 16


@pytest.mark.parametrize("tiles", [False, True])
def test_optimised_huffman_tables_change_no_pixel(tiles: bool) -> None:
    photo = crops_of_photographs(1, 300, 400)[0]
    plain, optimised = (encode_jpeg(photo, 90, tiles, optimize) for optimize in (False, True))
    assert np.array_equal(decode_rgb(plain), decode_rgb(optimised))
    assert len(optimised) < 0.99 * len(plain)
    assert encode_image(Encoding("jpg", tiles=tiles, optimize=True), 0, photo)[0] == optimised


def test_sides_beyond_the_format_are_refused() -> None:
    thin = np.zeros((1, 65536, 3), np.uint8)
    with pytest.raises(ImageError, match="65535"):
        encode_image(Encoding("raw"), 0, thin)
    with pytest.raises(ImageError, match="max_resolution"):
        encode_image(Encoding("jpg"), 0, thin[:, :65535])
    assert encode_image(Encoding("raw"), 0, thin[:, :65535])[1:] == (1, 1, 65535)
    assert encode_image(Encoding("jpg", max_resolution=1000), 0, thin)[2:] == (1, 1000)


def test_write_modes() -> None:
    assert stores_jpeg(Encoding("jpg"), 0, 1) and not stores_jpeg(Encoding("raw"), 0, 10**9)
    smart = Encoding("smart", smart_threshold=1000)
    assert stores_jpeg(smart, 0, 1001) and not stores_jpeg(smart, 0, 1000)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_proportion_is_a_function_of_seed_and_sample(probability: float) -> None:
    choices = {
        seed: [
            stores_jpeg(Encoding("proportion", compress_probability=probability, seed=seed), i, 1) for i in range(4000)
        ]
        for seed in (0, 1)
    }
    deviation = (probability * (1 - probability) / 4000) ** 0.5
    for chosen in choices.values():
        assert abs(np.mean(chosen) - probability) <= 4 * deviation
    assert (choices[0] == choices[1]) == (probability in (0.0, 1.0))
