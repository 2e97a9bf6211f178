"""Any image file to RGB pixels, smaller, and back to JPEG. Worker processes import this: nothing heavy here.

Pillow decides what is readable, by content whatever the file's name says. Plain JPEGs are then decoded by TurboJPEG,
which saves a fifth of the time and gives the same pixels. It is strict: at the least warning it gives up, and Pillow
decodes or refuses the file. OpenCV's decoder is as fast, but also gives pixels for damaged files that Pillow refuses.

Images are RGB here. Those from JPEGs lie in memory as BGR, which OpenCV encodes as it is: `image[:, :, ::-1]`, a view.
"""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

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


def decode_rgb(data: bytes, *, bgr: bool = True) -> np.ndarray:
    """The image in an image file's bytes as uint8 [height, width, 3], RGB, upright.

    Grey, palette, CMYK (as Adobe stores it, inverted) and bilevel images become RGB by Pillow's rules; an alpha
    channel is dropped, not blended, as torchvision's loader does; 16-bit grey is scaled to 8 bits; Exif orientation is
    applied; colour profiles are not. Of several frames the first counts. With `bgr` the array may be a view of one in
    BGR order, which OpenCV encodes. Raises `ImageError`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = _decode_plain_jpeg(data, image, bgr)
            if pixels is None:
                image.load()
                pixels = np.asarray(image if image.mode == "RGB" else _to_rgb(image))
            return _upright(pixels, image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Pillow's plugins raise whatever a malformed file leads them to: OSError, SyntaxError, struct.error, …
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is not an image, or of a format that Pillow does not know"
        raise ImageError(f"cannot be read: {reason}") from None


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


def _decode_plain_jpeg(data: bytes, image: Image.Image, bgr: bool) -> np.ndarray | None:
    """The pixels of `data`, which Pillow opened as `image`, or None where Pillow should have the last word."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "BGR" if bgr else "RGB", strict=True)
        return pixels[:, :, ::-1] if bgr else pixels
    except ValueError:
        return None


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    orientation = _orientation(image)
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
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is not known; convert it to 8 or 16 bits")
    return image.convert("RGB")
