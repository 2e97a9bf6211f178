"""Image files that others read and Pillow refuses or misreads: metadata that get in its way, and kinds of TIFF.

Worker processes import this: nothing heavy here.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
# What decides pixels (PNG 1.2, 4.1 and 4.2.1.1), and Exif for the orientation.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))

_KINDS = (
    (re.compile(rb"\xff\xd8\xff"), "a JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "a PNG"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "a TIFF"),
    (re.compile(rb"GIF8[79]a"), "a GIF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP file"),
    (re.compile(rb"BM....\0\0\0\0", re.DOTALL), "a BMP"),
    (re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL), "a HEIF file"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "an AVIF file"),
    (re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"), "a JPEG XL file"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "a JPEG 2000 file"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"\x76\x2f\x31\x01"), "an OpenEXR file"),
    (re.compile(rb"#\?(?:RADIANCE|RGBE)"), "a Radiance HDR file"),
    (re.compile(rb".{128}DICM", re.DOTALL), "a DICOM file"),
    (re.compile(rb"%PDF-"), "a PDF"),
    (re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<svg", re.DOTALL), "an SVG drawing"),
)


def kind_of(data: bytes) -> str:
    """The kind of image file that `data` begins as, with its article; "" where it is none that is known."""
    return next((kind for pattern, kind in _KINDS if pattern.match(data[:4096])), "")


def without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG without texts, profiles and previews, which readers may skip; anything else as it is."""
    try:
        if data.startswith(_PNG):
            return _PNG + b"".join(_png_chunks(data))
        if data.startswith(b"\xff\xd8\xff"):
            return b"\xff\xd8" + b"".join(_jpeg_segments(data))
    except (struct.error, IndexError):
        pass
    return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
    position = len(_PNG)
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        sound = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        # Pixels that are damaged stay for Pillow to refuse.
        if name in _PNG_CHUNKS and (sound or name != b"eXIf"):
            yield chunk
        position += 12 + length


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    position = 2
    while data[position] == 0xFF and data[position + 1] != 0xDA:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        # Adobe's segment tells colours; all other ones of applications, and comments, do not.
        adobe = marker == 0xEE and data[position + 4 : position + 9] == b"Adobe" and end - position >= 16
        if adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield data[position:end]
        position = end
    yield data[position:]


_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]", re.DOTALL)


def count_scans(data: bytes) -> int:
    """The scans of a JPEG, those of previews in its metadata not counted; 1 where the first one holds all there is.

    Decoders stop behind that one, and so does this: to walk through its data would take long for all files.
    """
    count, position, progressive, components = 0, 2, False, 0
    while (found := _MARKER.search(data, position)) is not None:
        marker, start = data[found.start() + 1], found.end()
        if marker == 0xD9 or start + 8 > len(data):
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive, components = marker & 3 == 2, data[start + 7]
        if marker == 0xDA:
            count += 1
            if not progressive and data[start + 2] == components:
                break
        position = start + int.from_bytes(data[start : start + 2], "big")
    return count


# Tags of TIFF 6.0
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _COLOUR_MAP, _EXTRA_SAMPLES = (
    256, 257, 258, 262, 274, 277, 284, 320, 338,
)  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = range(4)
_UNASSOCIATED = 2


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")


def tiff_size(data: bytes) -> tuple[int, int]:
    """Height and width of the first image of a TIFF; (0, 0) where its tags make no sense."""
    tags = _tags(data) or {}
    return tags.get(_LENGTH, [0])[0], tags.get(_WIDTH, [0])[0]


def decode_odd_tiff(data: bytes) -> tuple[np.ndarray, int] | None:
    """Upright or not, the pixels (uint8 [H, W, 3], RGB) of a kind of TIFF that Pillow misreads, and its orientation.

    These are grey of 12 bits, or of 16 with white as 0; colour maps of 8 bits; planes of 16 bits. None for any other,
    where Pillow should be asked. Raises whatever Pillow does of damaged files.
    """
    tags = _tags(data)
    if tags is None:
        return None
    bits, photometric = set(tags.get(_BITS, [1])), tags.get(_PHOTOMETRIC, [-1])[0]
    samples, orientation = tags.get(_SAMPLES, [1])[0], tags.get(_ORIENTATION, [1])[0]
    grey = samples == 1 and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if grey and (bits == {12} or (bits == {16} and photometric == _WHITE_IS_ZERO)):
        with Image.open(io.BytesIO(_with(data, _PHOTOMETRIC, _BLACK_IS_ZERO))) as image:
            values = np.asarray(image).astype(np.int64)
        largest = (1 << max(bits)) - 1
        values = values if photometric == _BLACK_IS_ZERO else largest - values
        # Pillow has turned it already.
        return _grey((values * 255 + largest // 2) // largest), 1
    if photometric == _PALETTE and bits == {8} and max(tags.get(_COLOUR_MAP, [256])) < 256:
        with Image.open(io.BytesIO(data)) as image:
            indices = np.asarray(image)
        colours = np.array(tags[_COLOUR_MAP], np.uint8).reshape(3, -1).T
        return (np.ascontiguousarray(colours[indices]), 1) if indices.ndim == 2 and len(colours) == 256 else None
    if tags.get(_PLANAR, [1])[0] == 2 and samples >= 3 and bits == {16} and photometric == _RGB:
        return _by_opencv(data, orientation)
    return None


def decode_unknown_tiff(data: bytes) -> tuple[np.ndarray, int] | None:
    """As `decode_odd_tiff`, for a TIFF that Pillow does not know, by OpenCV; None where that does not know it either.

    Colours that an alpha channel beside them must not change (TIFF 6.0, ExtraSamples 2) would be blended: not taken.
    """
    tags = _tags(data)
    if tags is None or _UNASSOCIATED in tags.get(_EXTRA_SAMPLES, []) or max(tags.get(_BITS, [1])) > 16:
        return None
    return _by_opencv(data, tags.get(_ORIENTATION, [1])[0])


def _by_opencv(data: bytes, orientation: int) -> tuple[np.ndarray, int] | None:
    # As 8 bits of three channels: as what they are, OpenCV misreads planes too.
    # libtiff would turn the image, but not all the way.
    plain = np.frombuffer(_with(data, _ORIENTATION, 1), np.uint8)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it names no file
    try:
        pixels = cv2.imdecode(plain, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    finally:
        cv2.utils.logging.setLogLevel(level)
    return None if pixels is None else (np.ascontiguousarray(pixels[:, :, ::-1]), orientation)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _tags(data: bytes) -> dict[int, list[int]] | None:
    """Whole numbers of the tags in the first directory of a TIFF; None where they make no sense."""
    try:
        return {tag: values for tag, values, _ in _entries(data)}
    except struct.error:
        return None


def _entries(data: bytes) -> Iterator[tuple[int, list[int], int]]:
    """(tag, values, position of the first value) of all entries of one or two bytes or four per value."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    for number in range(struct.unpack_from(f"{order}H", data, start)[0]):
        entry = start + 2 + 12 * number
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, entry)
        letter = {1: "B", 3: "H", 4: "I"}.get(kind)
        if letter is None or count > 1 << 16:
            continue
        size = struct.calcsize(f"{order}{count}{letter}")
        position = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
        yield tag, list(struct.unpack_from(f"{order}{count}{letter}", data, position)), position


def _with(data: bytes, tag: int, value: int) -> bytes:
    """The TIFF `data` with another value of a tag that has one."""
    changed = bytearray(data)
    for found, values, position in _entries(data):
        if found == tag and len(values) == 1:
            struct.pack_into("<H" if data[:2] == b"II" else ">H", changed, position, value)
    return bytes(changed)
