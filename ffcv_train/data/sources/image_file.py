"""Any image file to RGB pixels, smaller, and back to JPEG. Worker processes import this: nothing heavy here.

Pillow decides what is readable, by content whatever the file's name says. Plain JPEGs are then decoded by TurboJPEG,
which saves a fifth of the time and gives the same pixels. It is strict: at the least warning it gives up, and Pillow
decodes or refuses the file. OpenCV's decoder is as fast, but also gives pixels for damaged files that Pillow refuses.

Images are RGB here. Those from JPEGs lie in memory as BGR, which OpenCV encodes as it is: `image[:, :, ::-1]`, a view.
"""

import contextlib
import io
import re
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from ffcv_train.data.sources.odd_files import (
    count_scans,
    decode_odd_tiff,
    decode_unknown_tiff,
    is_tiff,
    kind_of,
    tiff_size,
    without_metadata,
)

MAX_PIXELS = 2 * 89_478_485
"""Pillow's limit: more are an error there."""
_LARGE = 50_000_000
_BYTES_PER_PIXEL = 9
"""Of RGB: the pixels, what a decoder or a turned copy takes beside them, and some for other modes."""
_PILLOW_LIMIT = threading.Lock()
_MAX_SCANS = 500
"""TurboJPEG's TJFLAG_LIMITSCANS, which the loader sets too."""
# Warnings of libjpeg (jerror.h) after which pixels are missing or invented; bytes left over at the end harm nothing.
_DAMAGE = re.compile(
    r"Corrupt JPEG data(?!: \d+ extraneous bytes before marker 0xd9)"
    r"|Premature end of JPEG file|Inconsistent progression sequence"
)

MAX_SIDE = 65535
"""The sample table holds heights and widths as 16-bit numbers."""

_ORIENTATION_TAG = 0x0112
# Exif 2.3, tag 274: what turns the stored image into the one that is meant.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Why an image cannot be stored, in words that follow the image's name."""


@dataclass(frozen=True)
class Decoded:
    """An image: `pixels`, uint8 [height, width, 3], RGB, upright; and `damage`, "" or what readers paper over in it."""

    pixels: np.ndarray
    damage: str = ""

    @property
    def reason(self) -> str:
        """Why a damaged one is refused, in words that follow the image's name."""
        return f"is a damaged JPEG ({self.damage}), of which readers make other pixels than it had"


def decode_rgb(data: bytes, *, bgr: bool = True) -> np.ndarray:
    """The pixels of `decode`. Raises `ImageError` for damaged JPEGs too, as the loader of .beton files does."""
    image = decode(data, bgr=bgr)
    if image.damage:
        raise ImageError(image.reason)
    return image.pixels


def decode(data: bytes, *, bgr: bool = True, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The image in an image file's bytes.

    Grey, palette, CMYK (as Adobe stores it, inverted) and bilevel images become RGB by Pillow's rules; an alpha
    channel is dropped, not blended, as torchvision's loader does; 12- and 16-bit grey is scaled to 8 bits; Exif
    orientation is applied; colour profiles are not. Of several frames the first counts. With `bgr` the array may be a
    view of one in BGR order, which OpenCV encodes. Raises `ImageError`, also for more than `max_pixels`, or more than
    there is memory for.
    """
    try:
        try:
            return _decode(data, bgr, max_pixels)
        except (ImageError, MemoryError):
            raise
        except Exception:
            # Pillow's plugins raise whatever a malformed file leads them to: OSError, SyntaxError, struct.error, …
            bare = without_metadata(data)
            if bare == data:
                raise
            with contextlib.suppress(Exception):
                return _decode(bare, bgr, max_pixels)
            raise
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            kind = kind_of(data)
            reason = "it is not an image, or of a format that Pillow does not know"
            if kind:
                reason = f"it is {kind}, but damaged or of a kind that Pillow does not know; save it as PNG or JPEG"
        raise ImageError(f"cannot be read: {reason}") from None


def _decode(data: bytes, bgr: bool, max_pixels: int) -> Decoded:
    if is_tiff(data):
        check_size(*tiff_size(data), max_pixels)
        odd = decode_odd_tiff(data)
        if odd is not None:
            return Decoded(_turned(*odd))
    try:
        image = _open(data)
    except Image.UnidentifiedImageError:
        unknown = decode_unknown_tiff(data) if is_tiff(data) else None
        if unknown is None:
            raise
        return Decoded(_turned(*unknown))
    with image:
        check_size(image.height, image.width, max_pixels)
        damage = ""
        pixels: np.ndarray | None = None
        if image.format in ("JPEG", "MPO"):
            pixels, damage = _decode_jpeg(data, image, bgr)
        if pixels is None:
            image.load()
            pixels = np.asarray(image if image.mode == "RGB" else _to_rgb(image))
        return Decoded(_upright(pixels, image), damage)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        # Pillow's own limit is one for the whole process; ours are compared afterwards.
        with _PILLOW_LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(io.BytesIO(data))
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise `ImageError` where an image has too many pixels, for the limit or for the memory that is available."""
    pixels = height * width
    if pixels > max_pixels:
        raise ImageError(
            f"has {width} × {height} pixels, which are {pixels / 1e6:.0f} million and more than the "
            f"{max_pixels / 1e6:.0f} million that are allowed"
        )
    if pixels > _LARGE:
        from ffcv_train.system.resources import available_bytes  # most workers never see such an image

        needed, available = pixels * _BYTES_PER_PIXEL, available_bytes()
        if needed > available:
            raise ImageError(
                f"has {width} × {height} pixels, which take {needed / 2**30:.1f} GiB to decode, and "
                f"{available / 2**30:.1f} GiB are available"
            )


def rgb_of(image: Image.Image) -> np.ndarray:
    """`image` as `decode_rgb` makes it of its file: uint8 [height, width, 3], RGB, upright. Raises `ImageError`."""
    try:
        return contiguous(_upright(np.asarray(image if image.mode == "RGB" else _to_rgb(image)), image))
    except OSError as error:
        raise ImageError(f"cannot be read: {error}") from None


def contiguous(image: np.ndarray) -> np.ndarray:
    """`image` (uint8 [H, W, 3], RGB) with its bytes in that order."""
    if _is_bgr(image):  # NumPy would take ten times as long
        return cv2.cvtColor(image[:, :, ::-1], cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image)


def _is_bgr(image: np.ndarray) -> bool:
    return not image.flags.c_contiguous and image[:, :, ::-1].flags.c_contiguous


def _decode_jpeg(data: bytes, image: Image.Image, bgr: bool) -> tuple[np.ndarray | None, str]:
    """The pixels of `data`, which Pillow opened as `image`, None where Pillow should have the last word; the damage."""
    if (scans := count_scans(data)) > _MAX_SCANS:
        raise ImageError(f"has {scans} scans, which may take hours to decode; {_MAX_SCANS} are allowed")
    layout = "CMYK" if image.mode not in ("RGB", "L") else "BGR" if bgr else "RGB"
    pixels, warning = _decode_strictly(data, layout)
    if pixels is None and (bare := without_metadata(data)) != data:
        # It may have been metadata that it stopped at.
        pixels, warning = _decode_strictly(bare, layout)
    if pixels is None:
        return None, warning if _DAMAGE.match(warning) else ""
    if layout == "CMYK":  # which Pillow knows how to turn into RGB
        return None, ""
    return (pixels[:, :, ::-1] if bgr else pixels), ""


def _decode_strictly(data: bytes, layout: str) -> tuple[np.ndarray | None, str]:
    """TurboJPEG's pixels, or None and the first thing that it complained of."""
    try:
        return simplejpeg.decode_jpeg(data, layout, strict=True), ""
    except ValueError as error:
        return None, str(error)


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    return _turned(pixels, _orientation(image))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in _TRANSPOSE:
        return np.asarray(Image.fromarray(contiguous(pixels)).transpose(_TRANSPOSE[orientation]))
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Pixels are sound where only the Exif block is broken.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips these at 255. Its mode "I" has 32 bits, but 16-bit files also come in it.
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError("has more than 16 bits per channel; convert it to 8 or 16 bits")
        return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "La":  # grey times alpha: Pillow divides on the way to "LA" alone
        image = image.convert("LA")
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is not known; convert it to 8 or 16 bits")
    return image.convert("RGB")
