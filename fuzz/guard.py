"""Memory that ends where reading or writing on would crash, and the loader's inner loop run on such memory."""

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np

from ffcv_train.data.kernels.decode import Scratch, decode_samples
from ffcv_train.data.kernels.modes import MODE_JPG

_CANARY = 0xA5
_CANARY_BYTES = 64
_COPIED_BYTES = 1 << 20
_PROT_NONE = 0  # sys/mman.h; the mmap module lacks it

_libc = ctypes.CDLL(None, use_errno=True)


class GuardError(Exception):
    """Memory was written that is not the callee's."""


class GuardedMemory:
    """`size` bytes between two pages that cannot be touched; pages that nobody writes to cost no memory."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self._inner = -(-size // page) * page
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._mapping = mmap.mmap(-1, self._inner + 2 * page, flags=private)
        whole = np.frombuffer(self._mapping, np.uint8)
        for start in (0, page + self._inner):
            if _libc.mprotect(ctypes.c_void_p(whole.ctypes.data + start), page, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        self._bytes = whole[page : page + self._inner]
        self._used = 0

    def at_end(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array whose last byte is the last before the closing page, with a canary in front of its first."""
        self._used = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._used + _CANARY_BYTES > self._inner:
            raise MemoryError(f"{self._used} bytes do not fit into guarded memory of {self._inner}")
        first = self._inner - self._used
        self._bytes[first - _CANARY_BYTES : first] = _CANARY
        return self._bytes[first:].view(dtype).reshape(shape)

    def at_start(self, data: np.ndarray) -> np.ndarray:
        """A copy of `data` (uint8) whose first byte is the first after the opening page."""
        self._used = self._inner
        view = self._bytes[: len(data)]
        view[:] = data
        return view

    def check(self, name: str) -> None:
        """Raise `GuardError` where the canary in front of the last array changed."""
        first = self._inner - self._used
        if not (self._bytes[max(0, first - _CANARY_BYTES) : first] == _CANARY).all():
            raise GuardError(f"wrote in front of {name}")


@dataclass(frozen=True)
class Request:
    """What the loader asks of its inner loop for one sample: the row of the sample table and the crop."""

    data: np.ndarray
    mode: int
    height: int
    width: int
    index: int
    parameters: np.ndarray
    resolution: int
    at_start: bool = False
    views: int = 1


class GuardedDecoder:
    """Runs `decode_samples` for one sample at a time with all that it reads and writes in guarded memory.

    The scratch is as large as `Loader` makes it for a file of this sample alone, and so the smallest that may do.
    """

    def __init__(self, max_image_bytes: int, max_stored_bytes: int) -> None:
        small = 1 << 24
        self._memory = {
            name: GuardedMemory(max_image_bytes if name in ("image", "converted") else small)
            for name, value in vars(Scratch(1, 1, 1, 1)).items()
            if isinstance(value, np.ndarray)
        }
        self._source = GuardedMemory(max_stored_bytes + _CANARY_BYTES)
        self._target = GuardedMemory(1 << 20)
        self._memory["tiles"] = GuardedMemory(max_stored_bytes + _CANARY_BYTES)

    def decode(self, request: Request) -> tuple[int, np.ndarray]:
        """(problem, image uint8 [R, R, 3], of the first view); raises `GuardError`. It is valid until the next call."""
        data, resolution = request.data, request.resolution
        if request.at_start:
            source = self._source.at_start(data)
        else:
            source = self._source.at_end((len(data),), np.dtype(np.uint8))
            source[:] = data
        side = max(request.height, request.width)
        is_jpeg = request.mode == MODE_JPG
        image_bytes = request.height * request.width * 3 if is_jpeg else 0
        scratch = Scratch(image_bytes, len(data) if is_jpeg else 0, side, resolution, request.views)
        for name, memory in self._memory.items():
            plain = getattr(scratch, name)
            guarded = memory.at_end(plain.shape, plain.dtype)
            if plain.nbytes <= _COPIED_BYTES:
                guarded[...] = plain
            setattr(scratch, name, guarded)
        target = self._target.at_end((request.views, resolution, resolution, 3), np.dtype(np.uint8))
        position, problem = decode_samples(
            (
                np.array([source.ctypes.data], np.uint64),
                np.array([len(data)], np.int64),
                np.array([request.mode], np.uint8),
                np.array([request.height], np.int64),
                np.array([request.width], np.int64),
                np.array([request.index], np.int64),
            ),
            0,
            0,
            (np.tile(request.parameters, (request.views, 1)), np.full(request.views, resolution)),
            target.reshape(-1),
            0,
            1,
            scratch.arguments,
        )
        for name, memory in (*self._memory.items(), ("the stored bytes", self._source), ("the target", self._target)):
            memory.check(name)
        if not np.array_equal(source, data):
            raise GuardError("changed the stored bytes")
        if (position, problem == 0) not in ((-1, True), (0, False)):
            raise GuardError(f"answered position {position} with problem {problem}")
        return problem, target[0]
