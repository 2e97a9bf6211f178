"""Real JPEGs of many structures, and what can go wrong with their bytes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from fuzz.photographs import photographs

SAMPLINGS = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:4:0": 0x121111, "4:1:1": 0x411111}
_MCU_WIDTH = {"4:4:4": 8, "4:2:2": 16, "4:2:0": 16, "4:4:0": 8, "4:1:1": 32, "grey": 8}
_SIDES = ((97, 128), (64, 80), (120, 67), (33, 161), (17, 24), (1, 40), (50, 1))
_MARKERS = (0x00, 0x01, 0xC0, 0xC1, 0xC2, 0xC4, 0xC8, 0xC9, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xE0, 0xEE, 0xFE, 0xFF)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers."""
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0xD0, 0xD1, 0xD7, 0xD8, 0xD9, 0xDA)
_END_OF_SEGMENT = re.compile(rb"\xff+([\x01-\xfe])")


@dataclass(frozen=True)
class SeedImage:
    """A sound JPEG of a photograph."""

    name: str
    data: bytes
    height: int
    width: int


def seed_images() -> list[SeedImage]:
    """JPEGs of parts of photographs: every chroma sampling and grey; sequential, with optimised tables, progressive;
    with restart markers that make tiles, that make none, and without."""
    seeds = []
    for number, (height, width) in enumerate(_SIDES):
        photograph = photographs()[number % 2]
        pixels = np.ascontiguousarray(photograph[40 + number : 40 + number + height, 60 : 60 + width, ::-1])
        for sampling in (*SAMPLINGS, "grey"):
            per_row = -(-width // _MCU_WIDTH[sampling])
            intervals = {0, 1, max(d for d in range(1, min(per_row, 5) + 1) if per_row % d == 0), per_row, per_row + 1}
            for interval in sorted(intervals):
                for coding in ("sequential", "optimised", "progressive"):
                    # A third of the combinations keeps the set small; all values of each remain.
                    if (number + interval + len(coding)) % 3 and number > 1:
                        continue
                    name = f"{height}x{width} {sampling} {coding} restart {interval}"
                    seeds.append(SeedImage(name, encode(pixels, sampling, interval, coding), height, width))
    return seeds


def encode(pixels: np.ndarray, sampling: str, interval: int, coding: str) -> bytes:
    """`pixels` (uint8 [H, W, 3], BGR) as JPEG of quality 85; `sampling` may be "grey"."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    options += [cv2.IMWRITE_JPEG_OPTIMIZE, int(coding == "optimised")]
    options += [cv2.IMWRITE_JPEG_PROGRESSIVE, int(coding == "progressive")]
    if sampling == "grey":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    else:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def header_segments(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """(marker, start, end) of the marker segments from after SOI through the first SOS, as far as they make sense."""
    found, i = [], 2
    while i + 4 <= len(data) and data[i] == 0xFF:
        marker = data[i + 1]
        if marker == 0xFF:
            i += 1
            continue
        end = i + 2 + int.from_bytes(data[i + 2 : i + 4], "big")
        if end < i + 4 or end > len(data):
            break
        found.append((marker, i, end))
        if marker == 0xDA:
            break
        i = end
    return found


def entropy_segments(data: bytes | bytearray, start: int) -> list[tuple[int, int, int]]:
    """(start, end, closing marker) of the stretches of entropy-coded data from `start` on, fill bytes left out."""
    found = []
    for match in _END_OF_SEGMENT.finditer(data, start):
        found.append((start, match.start(), match[1][0]))
        start = match.end()
    return found


def _flip_bits(data: bytearray, rng: Random) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: Random) -> None:
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice(_BYTES) if rng.random() < 0.6 else rng.randrange(256)


def _header_bytes(data: bytearray, rng: Random) -> None:
    end = min(len(data), max((e for _, _, e in header_segments(data)), default=0) or len(data))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] = rng.choice(_BYTES) if rng.random() < 0.5 else rng.randrange(256)


def _truncate(data: bytearray, rng: Random) -> None:
    segments = header_segments(data)
    if segments and rng.random() < 0.2:
        # The last segment says that it ends where the file ends.
        _, start, end = rng.choice(segments)
        length = rng.randint(2, end - start - 2)
        data[start + 2 : start + 4] = length.to_bytes(2, "big")
        del data[start + 2 + length :]
    elif (tiles := _tiles(data)) and rng.random() < 0.3:
        # In the middle of a marker, or around it.
        del data[rng.choice(tiles)[1] + rng.choice((0, 1, 1, 2)) :]
    elif segments and rng.random() < 0.4:
        # Exactly behind, or within, one of the header's segments.
        del data[max(1, rng.choice(segments)[2] - rng.choice((0, 0, 1, 2, 5))) :]
    else:
        del data[rng.randint(1, len(data)) :]


def _insert(data: bytearray, rng: Random) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 16)), b"\xff" * rng.randint(1, 4), b"\xff\x00", b"\0" * 8))


def _delete(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 1, 2, 3, 8, 64))]


def _swap_segments(data: bytearray, rng: Random) -> None:
    segments = header_segments(data)
    if len(segments) >= 2:
        (_, a, b), (_, c, d) = sorted(rng.sample(segments, 2), key=lambda s: s[1])
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _change_marker(data: bytearray, rng: Random) -> None:
    segments = header_segments(data)
    if segments:
        data[rng.choice(segments)[1] + 1] = rng.choice(_MARKERS)


def _change_length(data: bytearray, rng: Random) -> None:
    segments = header_segments(data)
    if segments:
        _, start, end = rng.choice(segments)
        length = end - start - 2
        new = rng.choice((0, 1, 2, 3, length - 1, length + 1, length + 3, length + 40, len(data), 65535))
        data[start + 2 : start + 4] = (new & 0xFFFF).to_bytes(2, "big")


def _frame(data: bytearray) -> int:
    """Where the frame header begins; −1 without one."""
    frames = [s for m, s, e in header_segments(data) if m in FRAMES and e >= s + 13]
    return frames[0] if frames else -1


def _change_size(data: bytearray, rng: Random) -> None:
    frame = _frame(data)
    if frame >= 0:
        at = frame + rng.choice((5, 7))
        old = int.from_bytes(data[at : at + 2], "big")
        new = rng.choice((0, 1, old - 1, old + 1, old + 8, old + 16, old * 2, old // 2, 400, 65500, 65535))
        data[at : at + 2] = (new & 0xFFFF).to_bytes(2, "big")


def _change_sampling(data: bytearray, rng: Random) -> None:
    frame = _frame(data)
    if frame >= 0:
        component = rng.randrange(max(1, min(4, data[frame + 9])))
        at = frame + 11 + 3 * component
        if at < len(data):
            data[at] = rng.choice((0x00, 0x01, 0x10, 0x11, 0x12, 0x21, 0x22, 0x31, 0x41, 0x14, 0x44, 0x88, 0xFF))


def _change_frame(data: bytearray, rng: Random) -> None:
    frame = _frame(data)
    if frame >= 0:
        what = rng.randrange(4)
        if what == 0:
            data[frame + 1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCF))
        elif what == 1:
            data[frame + 4] = rng.choice((0, 1, 7, 9, 12, 16))
        elif what == 2:
            data[frame + 9] = rng.choice((0, 1, 2, 3, 4, 5, 255))
        else:
            data[frame + 10 + rng.randrange(3)] = rng.randrange(256)


def _change_scan(data: bytearray, rng: Random) -> None:
    scans = [(s, e) for m, s, e in header_segments(data) if m == 0xDA]
    if scans:
        start, end = scans[0]
        at = rng.randrange(start + 4, end) if end > start + 4 else start + 3
        data[at] = rng.choice((0, 1, 2, 3, 4, 63, 0x11, 0xFF))


def _change_interval(data: bytearray, rng: Random) -> None:
    segments = header_segments(data)
    value = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 16, 255, 65535)).to_bytes(2, "big")
    intervals = [s for m, s, e in segments if m == 0xDD and e == s + 6]
    if intervals:
        data[intervals[0] + 4 : intervals[0] + 6] = value
    elif segments:
        at = rng.choice(segments)[1]
        data[at:at] = b"\xff\xdd\0\4" + value


def _tables(data: bytearray, rng: Random) -> None:
    tables = [(s, e) for m, s, e in header_segments(data) if m in (0xC4, 0xDB) and e > s + 4]
    if tables:
        start, end = rng.choice(tables)
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(start + 4, end)] = rng.choice(_BYTES) if rng.random() < 0.5 else rng.randrange(256)


def _tiles(data: bytearray) -> list[tuple[int, int, int]]:
    segments = header_segments(data)
    return entropy_segments(data, segments[-1][2]) if segments and segments[-1][0] == 0xDA else []


def _restart_number(data: bytearray, rng: Random) -> None:
    tiles = _tiles(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if tiles:
            end = rng.choice(tiles)[1]
            data[end + 1] = rng.choice((*range(0xD0, 0xD8), 0xD9, 0xDA, 0x00, 0xFF, 0x01, 0xE0))


def _edit_tiles(data: bytearray, rng: Random) -> None:
    """Remove, repeat, exchange, lengthen or shorten stretches between restart markers."""
    tiles = _tiles(data)
    if len(tiles) < 2:
        return
    number = rng.randrange(len(tiles) - 1)
    start, end, _ = tiles[number]
    what = rng.randrange(6)
    if what == 0:
        del data[start : end + 2]
    elif what == 1:
        data[start:start] = data[start : end + 2]
    elif what == 2:
        (a, b, _), (c, d, _) = sorted(rng.sample(tiles, 2))
        data[a:d] = data[c:d] + data[b:c] + data[a:b]
    elif what == 3:
        data[end:end] = rng.randbytes(rng.randint(1, 12)).replace(b"\xff", b"\xfe")
    elif what == 4:
        del data[max(start, end - rng.randint(1, 12)) : end]
    else:
        data[start:end] = b"\0" * (end - start)


def _tile_bits(data: bytearray, rng: Random) -> None:
    """Flip bits within one stretch between restart markers; the markers stay as they are."""
    tiles = [t for t in _tiles(data) if t[1] > t[0]]
    if tiles:
        start, end, _ = rng.choice(tiles)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(start, end)
            new = data[at] ^ (1 << rng.randrange(8))
            if 0xFF not in (data[at], new, data[at - 1]):
                data[at] = new


def _fill_bytes(data: bytearray, rng: Random) -> None:
    """More 0xFF in front of a marker, which the standard allows (B.1.1.2)."""
    places = [s for _, s, _ in header_segments(data)] + [e for _, e, _ in _tiles(data)]
    for at in sorted(rng.sample(places, min(len(places), rng.randint(1, 4))), reverse=True):
        data[at:at] = b"\xff" * rng.randint(1, 3)


def _duplicate(data: bytearray, rng: Random) -> None:
    """Repeat a segment of the header, or a whole scan, once or very often."""
    segments = header_segments(data)
    if not segments:
        return
    marker, start, end = rng.choice(segments)
    if marker == 0xDA or rng.random() < 0.3:
        found = data.rfind(b"\xff\xda")
        start, end = found, data.find(b"\xff\xd9", found)
        if min(start, end) < 0:
            return
    copy = data[start:end]
    data[end:end] = copy * min(rng.choice((1, 1, 2, 100, 3000)), max(1, 60000 // max(1, len(copy))))


def _append(data: bytearray, rng: Random) -> None:
    data += rng.choice((rng.randbytes(rng.randint(1, 200)), bytes(data), b"\xff", b"\xff\xd9", b"\xff\xd8"))


Mutation = Callable[[bytearray, Random], None]
MUTATIONS: dict[str, tuple[int, Mutation]] = {
    "bits": (3, _flip_bits),
    "bytes": (3, _overwrite),
    "header bytes": (3, _header_bytes),
    "tables": (2, _tables),
    "truncated": (3, _truncate),
    "inserted": (2, _insert),
    "deleted": (2, _delete),
    "segments swapped": (1, _swap_segments),
    "marker": (1, _change_marker),
    "length": (2, _change_length),
    "dimensions": (2, _change_size),
    "sampling": (2, _change_sampling),
    "frame": (2, _change_frame),
    "scan": (2, _change_scan),
    "interval": (2, _change_interval),
    "restart number": (3, _restart_number),
    "tiles edited": (4, _edit_tiles),
    "tile bits": (6, _tile_bits),
    "fill bytes": (1, _fill_bytes),
    "duplicated": (2, _duplicate),
    "appended": (1, _append),
}
"""Each with its weight."""
_NAMES = tuple(MUTATIONS)
_WEIGHTS = tuple(weight for weight, _ in MUTATIONS.values())


def mutate(seed: SeedImage, rng: Random) -> tuple[bytes, tuple[str, ...]]:
    """A damaged copy of a JPEG, of at least one byte, and what was done to it."""
    data = bytearray(seed.data)
    names = rng.choices(_NAMES, _WEIGHTS, k=rng.choice((1, 1, 1, 2, 3)))
    for name in names:
        if data:
            MUTATIONS[name][1](data, rng)
    return bytes(data[:MAX_BYTES]) or b"\0", tuple(dict.fromkeys(names))


MAX_BYTES = 1 << 17
