"""Damaged .beton files through opening, decoding, `BetonLoader` and `verify`."""

import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from rich.console import Console

from ffcv_train.data.classes import check_labels
from ffcv_train.data.format.beton import Beton, open_beton, sidecar_path
from ffcv_train.data.format.verify import verify
from ffcv_train.data.kernels.crops import CenterCrop, crop_parameters
from ffcv_train.data.kernels.modes import MODE_JPG
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from fuzz.beton_mutations import Damaged, Layout, mutate
from fuzz.guard import GuardedDecoder, Request
from fuzz.jpegs import PROBLEM_NAMES
from fuzz.second_opinion import SecondOpinion
from fuzz.supervisor import Outcome

ERRORS = {
    "is truncated or damaged": "a table beyond the file",
    "is not a .beton file": "no .beton header",
    "holds no samples": "no samples",
    "but images and labels are wanted": "other fields",
    "where no image was stored": "pointer to nothing",
    "which holds the image of sample": "pointer to another sample",
    "is absurd": "absurd position",
    "unknown storage mode": "storage mode",
    "has no pixels": "no pixels",
    "claims more pixels than": "more pixels than bytes can hold",
    "lies outside the data region": "outside the data region",
    "crosses a page": "crosses a page",
    "is raw but not": "raw of another size",
    "has a negative label": "negative label",
    "does not describe": "sidecar does not fit",
    "was not written with": "sidecar does not fit",
    "names its classes, is missing": "no sidecar",
    "is damaged at": "sidecar damaged",
    "not all of its files are names": "sidecar damaged",
    "differ from their checksum": "checksum of the tables",
    "cannot read": "cannot be read",
}
"""What an error of `open_beton` says, and the kind that it is counted as."""
_CROP = CenterCrop(224 / 256)
_PARAMETERS = crop_parameters(_CROP)
_RESOLUTION = 12
_MAX_IMAGE_BYTES = 1 << 30
_MAX_PIXELS_PER_BYTE = 1024
_LOADER_EVERY, _VERIFY_EVERY = 4, 8


@dataclass
class SeedBeton:
    """A sound file with all that is true of it."""

    name: str
    content: bytes
    sidecar: bytes | None
    layout: Layout
    beton: Beton
    stored: list[bytes]
    images: list[np.ndarray]


class BetonFuzzer:
    """Case n: one of the .beton files in `folder`, damaged; it is written into a folder within."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed = seed
        self._decoder = GuardedDecoder(_MAX_IMAGE_BYTES, _MAX_IMAGE_BYTES)
        self._opinion = SecondOpinion(self._decoder)
        self._seeds = [self._read(path) for path in sorted(folder.glob("*.beton"))]
        self._path = Path(tempfile.mkdtemp(dir=folder, prefix="work-")) / "case.beton"

    def case(self, number: int) -> tuple[SeedBeton, Damaged]:
        """The sound file and what became of it."""
        rng = Random((self._seed << 40) + number)
        seed = rng.choice(self._seeds)
        sidecar = seed.sidecar
        # Behind the checksum of the tables no other check would be reached.
        kind = rng.random()
        if sidecar is not None and kind < 0.6:
            sidecar = None if kind < 0.4 else _without_checksums(sidecar)
        return seed, mutate(seed.content, sidecar, seed.layout, rng)

    def run(self, case: int) -> Outcome:
        """Open the file; where that succeeds, everything that may be asked of it."""
        seed, damaged = self.case(case)
        _write(self._path, damaged)
        mutations = tuple(dict.fromkeys(damaged.mutations))
        try:
            beton = open_beton(self._path)
        except UserError as error:
            kind = next((kind for text, kind in ERRORS.items() if text in str(error)), "")
            bad = "" if kind and self._path.name in str(error) else f"not a clear error: {error}"
            if case % _VERIFY_EVERY == 0 and self._verifies():
                bad = "verify finds nothing wrong with a file that cannot be opened"
            return Outcome(kind or "another error", mutations, bad)
        bad = _table_fault(beton, damaged) or self._label_fault(beton)
        if not bad and 3 * int(beton.pixels().max()) > _MAX_IMAGE_BYTES:
            return Outcome("not decoded: over 1 GiB of pixels", mutations)
        problems: dict[int, int] = {}
        images: dict[int, np.ndarray] = {}
        for index in range(len(beton) if not bad else 0):
            bad = bad or self._sample(seed, beton, damaged, index, problems, images)
        if not bad and case % _LOADER_EVERY == 0:
            bad = self._load(beton, problems, images)
        if not bad and case % _VERIFY_EVERY == 0 and self._verifies():
            bad = "verify finds nothing wrong, but not every sample decodes" if problems else ""
            if beton.sidecar is not None and beton.sidecar.get("checksums") and _stored(beton) != seed.stored:
                bad = "verify finds nothing wrong, but stored bytes differ from their checksums"
        result = "image" if not problems else PROBLEM_NAMES[problems[min(problems)]]
        return Outcome(result, mutations, bad)

    def save(self, case: int, folder: Path) -> Path:
        """The file, with its sidecar."""
        _, damaged = self.case(case)
        file = folder / f"beton_{self._seed}_{case}.beton"
        _write(file, damaged)
        return file

    def _read(self, path: Path) -> SeedBeton:
        content, sidecar = path.read_bytes(), sidecar_path(path)
        beton = open_beton(path)
        stored = _stored(beton)
        images = []
        for index in range(len(beton)):
            problem, image = self._decoder.decode(_request(beton, index, stored[index]))
            if problem:
                raise UserError(f"{beton.describe(index)} is damaged already; give a sound file")
            images.append(image.copy())
        described = sidecar.read_bytes() if sidecar.exists() else None
        return SeedBeton(path.name, content, described, Layout.of(content), beton, stored, images)

    def _sample(
        self,
        seed: SeedBeton,
        beton: Beton,
        damaged: Damaged,
        index: int,
        problems: dict[int, int],
        images: dict[int, np.ndarray],
    ) -> str:
        """Decode a sample into `problems` or `images`; why its image is wrong, or ""."""
        ptr, size = int(beton.ptrs[index]), int(beton.sizes[index])
        stored = bytes(damaged.content[ptr : ptr + size])
        request = _request(beton, index, stored)
        problem, image = self._decoder.decode(request)
        if problem:
            problems[index] = problem
            return ""
        images[index] = image = image.copy()
        known = seed.beton
        if beton.sidecar is not None and beton.sidecar.get("checksums"):
            columns = ("labels", "modes", "heights", "widths", "ptrs", "sizes")
            if len(beton) != len(known) or any(getattr(beton, c)[index] != getattr(known, c)[index] for c in columns):
                return f"sample {index} is not as its row was written, though there is a checksum"
        if index < len(known) and stored == seed.stored[index] and request.mode == MODE_JPG:
            return "" if np.array_equal(image, seed.images[index]) else f"sample {index} has other pixels"
        if len(stored) > 200 and stored in seed.stored and request.mode == MODE_JPG:
            return f"sample {index} shows the image of sample {seed.stored.index(stored)}"
        if request.mode == MODE_JPG and (bad := self._opinion.of(request, image)):
            return f"sample {index}: {bad}"
        return ""

    def _label_fault(self, beton: Beton) -> str:
        names = beton.class_names
        if (beton.labels < 0).any() or (names is not None and not all(isinstance(name, str) for name in names)):
            return "labels below 0, or names that are no names"
        for index in range(len(beton)):
            beton.describe(index)
        try:
            check_labels(beton, 4)
        except UserError:
            return ""
        return "a label that is no class passes" if (beton.labels >= 4).any() else ""

    def _load(self, beton: Beton, problems: dict[int, int], images: dict[int, np.ndarray]) -> str:
        """Both ways to read a file give these images, or the error of one of these samples."""
        # Here and not above: only this process needs torch, which takes seconds to import.
        import torch

        from ffcv_train.data.loading.beton_loader import BetonLoader

        for order, batch_size in (("sequential", 5), ("quasi_random", 1)):
            loader = BetonLoader(
                beton,
                batch_size,
                crop=_CROP,
                resolution=_RESOLUTION,
                device=torch.device("cpu"),
                order=order,  # type: ignore[arg-type]
                num_workers=1,
            )
            seen = 0
            try:
                for batch in loader:
                    for index, image in zip(batch.indices.tolist(), batch.images.permute(0, 2, 3, 1), strict=True):
                        seen += 1
                        if index not in images or not np.array_equal(image.numpy(), images[index]):
                            return f"the loader ({order}) gives another image of sample {index}"
                if problems or seen != len(beton):
                    return f"the loader ({order}) gives {seen} of {len(beton)} images without an error"
            except UserError as error:
                if not any(beton.describe(index) in str(error) for index in problems):
                    return f"the loader ({order}) names no damaged sample: {error}"
            finally:
                loader.close()
        return ""

    def _verifies(self) -> bool:
        try:
            verify(self._path, ProgressLine(console=Console(file=io.StringIO())))
        except UserError:
            return False
        return True


def _request(beton: Beton, index: int, stored: bytes) -> Request:
    data = np.frombuffer(stored, np.uint8)
    mode, height, width = int(beton.modes[index]), int(beton.heights[index]), int(beton.widths[index])
    return Request(data, mode, height, width, index, _PARAMETERS, _RESOLUTION, at_start=index % 4 == 3)


def _table_fault(beton: Beton, damaged: Damaged) -> str:
    """What `open_beton` should have refused, or ""; in Python's integers, which do not overflow."""
    for index in range(len(beton)):
        ptr, size = int(beton.ptrs[index]), int(beton.sizes[index])
        height, width = int(beton.heights[index]), int(beton.widths[index])
        if not 0 <= ptr < ptr + size <= len(damaged.content):
            return f"sample {index} lies outside the file"
        if beton.modes[index] == MODE_JPG and height * width > _MAX_PIXELS_PER_BYTE * size:
            return f"sample {index} claims {width} × {height} pixels in {size} bytes"
        if beton.modes[index] == 1 and height * width * 3 != size:
            return f"sample {index} is raw and not of its size"
    return ""


def _stored(beton: Beton) -> list[bytes]:
    content = beton.path.read_bytes()
    return [content[ptr : ptr + size] for ptr, size in zip(beton.ptrs.tolist(), beton.sizes.tolist(), strict=True)]


def _without_checksums(sidecar: bytes) -> bytes:
    described = json.loads(sidecar)
    described.pop("checksums", None)
    return json.dumps(described).encode()


def _write(path: Path, damaged: Damaged) -> None:
    path.write_bytes(damaged.content)
    if damaged.sidecar is None:
        sidecar_path(path).unlink(missing_ok=True)
    else:
        sidecar_path(path).write_bytes(damaged.sidecar)
