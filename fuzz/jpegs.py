"""Damaged JPEGs through the loader's inner loop, and a second opinion on every image that comes out."""

import dataclasses
import json
import pickle
from pathlib import Path
from random import Random

import numpy as np

from ffcv_train.data.kernels.crops import IS_RANDOM, CenterCrop, RandomResizedCrop, crop_parameters
from ffcv_train.data.kernels.decode import BAD_HEADER, BAD_JPEG, BAD_LEVEL
from ffcv_train.data.kernels.level import TRAILER_BYTES, with_level
from ffcv_train.data.kernels.resample import resize
from fuzz.guard import GuardedDecoder, Request
from fuzz.jpeg_mutations import MAX_BYTES, SeedImage, encode, mutate, seed_images
from fuzz.second_opinion import SecondOpinion, frame_size_of, is_clean, whole_image
from fuzz.supervisor import Outcome

PROBLEM_NAMES = {BAD_HEADER: "header refused", BAD_JPEG: "damaged JPEG", BAD_LEVEL: "level refused"}
REFUSED_BUT_CLEAN = "refused, though the whole decodes"
_SEED_FILE = "jpegs.pickle"
_MAX_PIXELS = 400 * 400
_CHECK_EVERY = 50
_VIEWS_EVERY = 3
_CROPS = (
    RandomResizedCrop((0.08, 1.0)),
    RandomResizedCrop((0.02, 0.3), interpolation="bicubic"),
    RandomResizedCrop((0.05, 0.5)),
    CenterCrop(224 / 256),
    CenterCrop(0.3, interpolation="bicubic"),
)
_REDUCED = RandomResizedCrop((0.2, 1.0), dct_scaling=True)
_RESOLUTIONS = (1, 5, 8, 16, 33)
DAMAGED_PARTS = ("image before a level", "level", "level's trailer")


def write_seeds(folder: Path) -> None:
    """The sound JPEGs, for fuzzers to read."""
    (folder / _SEED_FILE).write_bytes(pickle.dumps(seed_images()))


class JpegFuzzer:
    """Case n: one of the JPEGs of `write_seeds`, damaged, asked for with one of the loader's crops."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed = seed
        self._seeds: list[SeedImage] = pickle.loads((folder / _SEED_FILE).read_bytes())
        self._decoder = GuardedDecoder(3 * _MAX_PIXELS, max(2 * MAX_BYTES + TRAILER_BYTES, 3 * _MAX_PIXELS))
        self._opinion = SecondOpinion(self._decoder)
        self._sound = self._seeds[len(self._seeds) // 3]
        self._sound_image = self._decode_sound()

    def case(self, number: int) -> tuple[Request, tuple[str, ...]]:
        """What the loader is asked for, and what was done to the JPEG."""
        rng = Random((self._seed << 40) + number)
        seed = rng.choice(self._seeds)
        data, mutations = mutate(seed, rng)
        height, width = self._table_row(seed, data, rng)
        if rng.random() < 0.3:
            data, mutations = _add_level(seed, data, mutations, rng)
        reduced = rng.random() < 0.1
        parameters = crop_parameters(_REDUCED if reduced else rng.choice(_CROPS))
        resolution = rng.choice((4, 9, 17)) if reduced else rng.choice(_RESOLUTIONS)
        stored = np.frombuffer(data, np.uint8)
        request = Request(stored, 0, height, width, number, parameters, resolution, at_start=number % 4 == 3)
        return request, mutations

    def run(self, case: int) -> Outcome:
        """Decode, and compare with the second opinion; now and then a sound image as well."""
        request, mutations = self.case(case)
        problem, image = self._decoder.decode(request)
        result = PROBLEM_NAMES[problem] if problem else "image"
        if problem and is_clean(request):
            result = REFUSED_BUT_CLEAN
        bad = "" if problem else self._opinion.of(request, image)
        if case % _VIEWS_EVERY == 0 and not problem and not bad and request.parameters[IS_RANDOM]:
            bad = self._other_with_views(request, image.copy())
        if case % _CHECK_EVERY == 0 and not bad and not np.array_equal(self._decode_sound(), self._sound_image):
            bad = "a sound image decodes to other pixels afterwards"
        return Outcome(result, mutations, bad)

    def _other_with_views(self, request: Request, image: np.ndarray) -> str:
        """What is wrong with the image as the first of three views; the others may meet damage that it does not."""
        problem, first = self._decoder.decode(dataclasses.replace(request, views=3))
        return "" if problem or np.array_equal(first, image) else "is another image as the first of three views"

    def save(self, case: int, folder: Path) -> Path:
        """The JPEG, and beside it the rest of the request."""
        request, mutations = self.case(case)
        file = folder / f"jpeg_{self._seed}_{case}.jpg"
        file.write_bytes(request.data.tobytes())
        rest = {"height": request.height, "width": request.width, "index": request.index, "mutations": mutations}
        rest |= {"parameters": request.parameters.tolist(), "resolution": request.resolution}
        file.with_suffix(".json").write_text(json.dumps(rest) + "\n")
        return file

    def _table_row(self, seed: SeedImage, data: bytes, rng: Random) -> tuple[int, int]:
        """Height and width in the sample table: the sound image's, or, to get further, what the damaged one says."""
        said = frame_size_of(data)
        if rng.random() < 0.5 and 0 < said[0] * said[1] <= _MAX_PIXELS:
            return said
        return seed.height, seed.width

    def _decode_sound(self) -> np.ndarray:
        data = np.frombuffer(self._sound.data, np.uint8)
        request = Request(data, 0, self._sound.height, self._sound.width, 1, crop_parameters(_CROPS[0]), 16)
        problem, image = self._decoder.decode(request)
        if problem:
            raise AssertionError("a sound image is refused")
        return image.copy()


def _add_level(
    seed: SeedImage, damaged: bytes, mutations: tuple[str, ...], rng: Random
) -> tuple[bytes, tuple[str, ...]]:
    """A sample with a level, of which the image, the level or the trailer is damaged, and what was done to it."""
    pixels = whole_image(seed.data, seed.height, seed.width)
    assert pixels is not None
    share = rng.choice((0.5, 0.65, 0.75))
    height, width = max(1, round(seed.height * share)), max(1, round(seed.width * share))
    level = encode(resize(pixels, height, width, "bicubic")[:, :, ::-1], "4:2:0", rng.choice((0, 1, 2)), "sequential")
    what = rng.choice(DAMAGED_PARTS)
    if what == DAMAGED_PARTS[0]:
        return with_level(damaged, level), (*mutations, what)
    if what == DAMAGED_PARTS[1]:
        level, done = mutate(SeedImage(f"level of {seed.name}", level, height, width), rng)
        return with_level(seed.data, level), (*done, what)
    data = bytearray(with_level(seed.data, level))
    data[len(data) - rng.randint(1, 8)] ^= 1 << rng.randrange(8)
    return bytes(data), (what,)
