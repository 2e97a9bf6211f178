"""Whether an image from a damaged JPEG may be believed, by decoding all of it and by taking it to pieces."""

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from ffcv_train.data.kernels.chroma import clamped_excess
from ffcv_train.data.kernels.crops import center_crop, random_crop, scaled_box
from ffcv_train.data.kernels.decode import MOST_EXCESS
from ffcv_train.data.kernels.level import is_smaller, level_of
from ffcv_train.data.kernels.planes import plane_scratch, resize_planes
from ffcv_train.data.kernels.random import seed_stream
from ffcv_train.data.kernels.resample import resize_crop, scratch_sizes
from ffcv_train.data.kernels.turbojpeg import decode_jpeg, decode_planes
from fuzz.guard import GuardedDecoder, Request
from fuzz.jpeg_mutations import FRAMES, entropy_segments, header_segments

Part = tuple[int, int, int, int, float, float, float, float]
"""Whole pixels (top, left, height, width), and the box (y, x, height, width) within them that becomes the crop"""

_OPENCV_EVERY = 4
_MARGIN = 2  # pixels around a crop that chroma upsampling looks at; when decoding at 1/n, n if that is more
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@dataclass(frozen=True)
class TilesRead:
    """The tiles around a crop: the JPEG's bytes before its entropy-coded data, where in these the frame header begins,
    the number of all tiles and of their columns, and by number the (bytes, height, width) of those read."""

    head: bytes
    frame: int
    total: int
    columns: int
    tiles: dict[int, tuple[bytes, int, int]]

    def healed(self) -> bytes:
        """The JPEG with every other tile replaced by one of these, and its markers made sound.

        Every tile has as many MCUs, and none depends on another, so the rest of the picture becomes nonsense and this
        part stays what it is.
        """
        filler = next(iter(self.tiles.values()))
        parts = [self.head]
        for number in range(self.total):
            parts += (self.tiles.get(number, filler)[0], bytes((0xFF, 0xD0 + number % 8)))
        parts[-1] = b"\xff\xd9"
        return b"".join(parts)

    def as_images(self) -> dict[int, tuple[bytes, int, int]]:
        """Each of them as a JPEG of its own, with its height and width, by number."""
        images = {}
        for number, (data, height, width) in self.tiles.items():
            sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
            head = self.head[: self.frame + 5] + sides + self.head[self.frame + 9 :]
            images[number] = (head + data + b"\xff\xd9", height, width)
        return images

    def are_sound(self) -> bool:
        """Whether each of them, as an image of its own, decodes without complaint."""
        return all(whole_image(*image) is not None for image in self.as_images().values())

    def planes(self, height: int, width: int) -> np.ndarray:
        """Planes of the whole, as `decode_planes` leaves them, put together of these; elsewhere black."""
        tall, wide = (height + 1) // 2, (width + 1) // 2
        whole = np.zeros(6 * tall * wide, np.uint8)
        down, across = max(tile[1] for tile in self.tiles.values()), max(tile[2] for tile in self.tiles.values())
        for number, image in self.as_images().items():
            planes = whole_planes(*image)
            assert planes is not None
            row, column = divmod(number, self.columns)
            for into, tile in zip(_parts(whole, height, width), _parts(planes, *image[1:]), strict=True):
                share = 1 if into.shape[1] == 2 * wide else 2
                top, left = row * down // share, column * across // share
                into[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        return whole


class SecondOpinion:
    """Compares images of the loader with what the JPEG shows by other ways of reading it."""

    def __init__(self, decoder: GuardedDecoder) -> None:
        self._decoder = decoder
        self._count = 0

    def of(self, request: Request, image: np.ndarray) -> str:
        """Why `image` (uint8 [R, R, 3]) is wrong, or ""."""
        image = image.copy()
        request, part, flip = _source(request)
        data, box = request.data.tobytes(), part[:4]
        reduction = _reduction(request, box)
        rows, columns = -(-request.height // reduction), -(-request.width // reduction)
        pixels, planes = whole_image(data, rows, columns), None
        if _is_cut_from_planes(request, reduction):
            planes = whole_planes(data, rows, columns)
        self._count += 1
        ask_opencv = self._count % _OPENCV_EVERY == 0 and not _is_progressive(data)
        if pixels is not None and ask_opencv and not _equal(opencv_image(data, reduction), pixels):
            return "OpenCV decodes other pixels"
        if pixels is None:
            read = tiles_read(data, request, box, reduction)
            if read is None:
                return "an image, though the whole is damaged and there are no tiles to read apart"
            healed = read.healed()
            pixels = whole_image(healed, rows, columns)
            if _is_cut_from_planes(request, reduction):
                planes = whole_planes(healed, rows, columns)
            if pixels is None:
                if not read.are_sound():
                    return "an image, though the tiles that it is made of are damaged"
                # Surplus bytes at the end of a tile, about which OpenCV does not mind.
                pixels = opencv_image(healed, reduction)
                if _is_cut_from_planes(request, reduction):
                    planes = read.planes(rows, columns)
        if pixels is None:
            return "an image, though OpenCV finds none"
        if request.parameters[0] == 0:
            whole = dataclasses.replace(request, data=pixels.reshape(-1), mode=1)
            expected = self._decoder.decode(whole)[1]
        else:
            if reduction > 1:
                top, left, _, _, y, x, height, width = part
                share = 1 / reduction
                part = scaled_box(top + y, left + x, height, width, share, share, rows, columns)
            expected = _resized(pixels, part, flip, request)
            if planes is not None and clamped_excess(planes, rows, columns, *part[:4]) <= MOST_EXCESS:
                expected = _resized_planes(planes, part, flip, request)
        if not np.array_equal(expected, image):
            difference = np.abs(expected.astype(int) - image)
            what = "the whole JPEG" if reduction == 1 else f"the whole JPEG at 1/{reduction}"
            return f"pixels differ from those of {what} by {difference.mean():.2f}, at most {difference.max()}"
        return ""


def is_clean(request: Request) -> bool:
    """Whether TurboJPEG decodes the whole without complaint, to the size in the sample table, and the level to its."""
    data, size = request.data.tobytes(), (request.height, request.width)
    level = level_of(request.data).tobytes()
    if level:
        smaller = frame_size_of(level)
        if not is_smaller(*smaller, *size) or whole_image(level, *smaller) is None:
            return False
    return frame_size_of(data) == size and whole_image(data, *size) is not None


def whole_image(data: bytes, height: int, width: int) -> np.ndarray | None:
    """The image (uint8 [height, width, 3]), or None where TurboJPEG complains."""
    stored, pixels = np.frombuffer(data, np.uint8), np.empty((height, width, 3), np.uint8)
    failed = decode_jpeg(stored.ctypes.data, len(stored), height, width, pixels.reshape(-1))
    return None if failed else pixels


def whole_planes(data: bytes, height: int, width: int) -> np.ndarray | None:
    """The planes (uint8, flat) as `decode_planes` leaves them, or None where TurboJPEG complains."""
    stored, planes = np.frombuffer(data, np.uint8), np.empty(6 * ((height + 1) // 2) * ((width + 1) // 2), np.uint8)
    failed = decode_planes(stored.ctypes.data, len(stored), height, width, planes)
    return None if failed else planes


def opencv_image(data: bytes, reduction: int) -> np.ndarray | None:
    """The image (uint8 [H, W, 3], RGB) by another build of the library, with another way in, damaged as it may be."""
    flag = _REDUCED.get(reduction, cv2.IMREAD_COLOR)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else image[:, :, ::-1]


def tiles_read(data: bytes, request: Request, box: tuple[int, int, int, int], reduction: int) -> TilesRead | None:
    """The tiles around a crop; None where there are none, or the markers up to the last of them are not in order."""
    margin = max(_MARGIN, reduction)
    segments = header_segments(data)
    frames = [s for m, s, _ in segments if m in (0xC0, 0xC1)]
    intervals = [s for m, s, e in segments if m == 0xDD and e == s + 6]
    if len(frames) != 1 or not intervals or segments[-1][0] != 0xDA:
        return None
    frame, interval = frames[0], int.from_bytes(data[intervals[-1] + 4 : intervals[-1] + 6], "big")
    factors = [data[frame + 11 + 3 * component] for component in range(data[frame + 9])]
    across, down = (max(f >> 4 for f in factors), max(f & 15 for f in factors)) if len(factors) > 1 else (1, 1)
    mcus_across, rows = -(-request.width // (8 * across)), -(-request.height // (8 * down))
    if interval == 0 or mcus_across % interval:
        return None
    columns, tile_height, tile_width = mcus_across // interval, 8 * down, 8 * across * interval
    top, left, height, width = box
    needed = [
        (row, column)
        for row in range(rows)
        for column in range(columns)
        if row * tile_height < top + height + margin
        and (row + 1) * tile_height > top - margin
        and column * tile_width < left + width + margin
        and (column + 1) * tile_width > left - margin
    ]
    start, total = segments[-1][2], rows * columns
    stretches = entropy_segments(data, start)
    last = needed[-1][0] * columns + needed[-1][1]
    if len(stretches) <= last:
        return None
    for number in range(last + 1):
        if stretches[number][2] != (0xD9 if number == total - 1 else 0xD0 + number % 8):
            return None
    tiles = {}
    for row, column in needed:
        first, end, _ = stretches[row * columns + column]
        size = (
            min(tile_height, request.height - row * tile_height),
            min(tile_width, request.width - column * tile_width),
        )
        tiles[row * columns + column] = (data[first:end], *size)
    return TilesRead(data[:start], frame, total, columns, tiles)


def frame_size_of(data: bytes) -> tuple[int, int]:
    """(height, width) in the first frame header, (0, 0) without one."""
    for marker, start, end in header_segments(data):
        if marker in FRAMES and end >= start + 9:
            height, width = data[start + 5 : start + 7], data[start + 7 : start + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
    return 0, 0


def crop_box(request: Request) -> tuple[Part, bool]:
    """What the loader makes its crop from, and whether it is mirrored."""
    if request.parameters[0] == 0:
        return center_crop(request.height, request.width, request.parameters, request.resolution), False
    state = np.zeros(1, np.uint64)
    seed_stream(state, 0, 0, request.index)
    top, left, height, width, flip = random_crop(request.height, request.width, request.parameters, state)
    return (top, left, height, width, 0.0, 0.0, float(height), float(width)), flip


def _source(request: Request) -> tuple[Request, Part, bool]:
    """The request with the JPEG that serves it, the image's or its level's, and the crop in that."""
    part, flip = crop_box(request)
    level = level_of(request.data)
    if request.parameters[0] == 0 or not len(level):
        return request, part, flip
    rows, columns = frame_size_of(level.tobytes())
    down, across = rows / request.height, columns / request.width
    top, left, height, width = part[:4]
    if height * down < request.resolution or width * across < request.resolution:
        return request, part, flip
    part = scaled_box(top, left, height, width, down, across, rows, columns)
    return dataclasses.replace(request, data=level, height=rows, width=columns), part, flip


def _resized(pixels: np.ndarray, part: Part, flip: bool, request: Request) -> np.ndarray:
    """A crop of `pixels` (uint8 [H, W, 3]) by the loader's resampler."""
    height, width, size = *pixels.shape[:2], request.resolution
    row, weights = scratch_sizes(max(height, width), size)
    target = np.empty((size, size, 3), np.uint8)
    scratch = (np.zeros(row, np.float32), np.empty(weights, np.float32), np.empty((2, size), np.int32))
    kind = int(request.parameters[1])
    resize_crop(np.ascontiguousarray(pixels).reshape(-1), width, *part, flip, kind, target, *scratch)
    return target


def _resized_planes(planes: np.ndarray, part: Part, flip: bool, request: Request) -> np.ndarray:
    """A crop of planes of the whole by the loader's resampler for these."""
    height, width, size = request.height, request.width, request.resolution
    _, weights = scratch_sizes(max(height, width), size)
    target = np.empty((size, size, 3), np.uint8)
    scratch = (np.empty(weights, np.float32), np.empty((2, size), np.int32), plane_scratch(max(height, width), size))
    padded = np.append(planes, np.zeros(8, np.uint8))
    resize_planes(padded, height, width, *part, flip, int(request.parameters[1]), target, *scratch)
    return target


def _parts(planes: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Y, Cb and Cr, of two dimensions each, as views of `decode_planes`' planes."""
    tall, wide = (height + 1) // 2, (width + 1) // 2
    luma, blue, red = np.split(planes, [4 * tall * wide, 5 * tall * wide])
    return [luma.reshape(2 * tall, 2 * wide), blue.reshape(tall, wide), red.reshape(tall, wide)]


def _is_cut_from_planes(request: Request, reduction: int) -> bool:
    """Whether the loader may decode a crop to planes: of a JPEG in 4:2:0 of one scan, not too small."""
    data = request.data.tobytes()
    segments = header_segments(data)
    frames = [data[start:end] for marker, start, end in segments if marker in (0xC0, 0xC1)]
    if request.parameters[0] == 0 or reduction > 1 or request.height < 2 or request.width < 5 or len(frames) != 1:
        return False
    components = [frames[0][10 + 3 * c : 12 + 3 * c] for c in range(frames[0][9])]
    in_one_scan = data[segments[-1][1] + 4] == len(components)
    is_adobes = any(marker == 0xEE for marker, _, _ in segments)
    return in_one_scan and not is_adobes and components == [b"\x01\x22", b"\x02\x11", b"\x03\x11"]


def _reduction(request: Request, box: tuple[int, int, int, int]) -> int:
    """By how much the loader reduces the crop while decoding: to no less than the target, at most by 8."""
    most = min(box[2:]) // request.resolution if request.parameters[7] > 0 else 1
    return max(reduction for reduction in (1, 2, 4, 8) if reduction <= max(1, most))


def _equal(image: np.ndarray | None, other: np.ndarray) -> bool:
    return image is not None and np.array_equal(image, other)


def _is_progressive(data: bytes) -> bool:
    """Where scans are missing, versions of the library smooth the blocks differently."""
    return any(marker == 0xC2 for marker, _, _ in header_segments(data))
