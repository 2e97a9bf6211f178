"""Corruptions against the authors' code (hendrycks/robustness), run once on the images of tests/support/corruptions.

Its Wand was replaced by ImageMagick's motion blur written out, as the library is not at hand everywhere.
"""

import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from ffcv_train.data.kernels.corruptions import CORRUPTIONS, Setting, _smoothing, _zoomed, apply, corrupt, read_frost
from tests.support.corruptions import frost_photographs, reference_images
from tests.support.photographs import ROOT

REFERENCE = ROOT / "tests" / "data_files" / "corruptions.npz"
# Theirs goes through HSV, and multiplies frost in steps of 255: by rounding, what is truncated to 8 bits differs.
ROUNDED = ("brightness", "frost")


@pytest.fixture(scope="module")
def frost(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    folder = tmp_path_factory.mktemp("frost")
    for name, image in frost_photographs().items():
        Image.fromarray(image).save(folder / name, "PNG")
    return read_frost(folder)


@pytest.mark.parametrize("kind", ["imagenet", "cifar"])
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruptions_are_the_authors(name: str, kind: str, frost: list[np.ndarray]) -> None:
    image = reference_images()[kind]
    with np.load(REFERENCE) as reference:
        for severity in range(1, 6):
            found = apply(image, name, Setting(kind, severity - 1, np.random.RandomState(severity), frost))
            expected = reference[f"{kind} {name} {severity}"]
            step = len(image) // len(expected)
            off = np.abs(found[::step, ::step].astype(int) - expected)
            # SciPy's, OpenCV's and libjpeg's sums may differ in their last bit from one processor to the next.
            assert off.max() <= (2 if name == "jpeg_compression" else 1), severity
            assert (off > 0).mean() <= (0.05 if name in ROUNDED else 0.005), severity


@pytest.mark.parametrize("side", [24, 32, 36, 96])
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruptions_are_functions_of_their_arguments(name: str, side: int, frost: list[np.ndarray]) -> None:
    image = np.ascontiguousarray(reference_images()["imagenet"][:side, :side])
    before = image.copy()
    results = [corrupt(image, name, severity, (0, 7), frost) for severity in (1, 5)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(corrupt(image, name, 5, (0, 7), frost), results[1])
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    for other in ((0, 8), (1, 7)):
        assert np.array_equal(corrupt(image, name, 5, other, frost), results[1]) != drawn
    errors = [np.abs(result.astype(int) - image).mean() for result in results]
    assert errors[1] > 0
    if name.endswith("_noise") or name in ("defocus_blur", "contrast", "pixelate", "jpeg_compression"):
        assert errors[0] < errors[1]


@given(side=st.integers(8, 80), factor=st.floats(1, 4.5), dtype=st.sampled_from([np.float32, np.float64]))
@example(side=224, factor=1.3, dtype=np.float32)
@example(side=36, factor=1.0, dtype=np.float32)
@settings(max_examples=60, deadline=None)
def test_zoom_is_scipys_to_the_bit(side: int, factor: float, dtype: type) -> None:
    x = np.random.default_rng(side).random((side, side, 2)).astype(dtype)
    inner = int(np.ceil(side / factor))
    assume(inner > 1)
    start = (side - inner) // 2
    whole = ndimage.zoom(x[start : start + inner, start : start + inner], (factor, factor, 1), order=1)
    trim = (len(whole) - side) // 2
    expected = whole[trim : trim + side, trim : trim + side]
    # Compilers for other processors may fuse SciPy's products and sums, which rounds once less.
    atol = 0 if platform.machine() == "x86_64" else 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(_zoomed(x, factor), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("side", "sigma"), [(224, 170.8), (224, 2.44), (33, 0.33), (32, 6.4), (32, 0)])
def test_smoothing_is_scipys(side: int, sigma: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (side, side))
    smooth = _smoothing(side, sigma)
    expected = ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=3)
    # Sums of at most `side` products below 1, whose weights sum to 1, twice.
    np.testing.assert_allclose(smooth @ x @ smooth.T, expected, rtol=0, atol=4 * side * np.finfo(np.float64).eps)


def test_what_is_no_square_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[S, S, 3\], not float64 \[8, 8, 3\]"):
        corrupt(np.zeros((8, 8, 3)), "fog", 1, (0,))


def test_frost_needs_its_photographs(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="frost1"):
        read_frost(tmp_path)
