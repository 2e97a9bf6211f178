"""Crops of decoded pixels, by the loader's own inner loop."""

import numpy as np

from ffcv_train.data.kernels.decode import Scratch, decode_samples
from ffcv_train.data.kernels.modes import MODE_RAW

_RAW = np.full(1, MODE_RAW, np.uint8)


class Cutter:
    """Crops and resizes decoded images as the loader does those of a .beton; for one thread.

    `parameters` is `crop_parameters` of the crop, or of several views, [V, 8].
    """

    def __init__(self, parameters: np.ndarray) -> None:
        self._parameters = np.atleast_2d(parameters)
        self._scratch: Scratch | None = None
        self._largest = (0, 0)

    def __call__(self, pixels: np.ndarray, side: int, *, key: int = 0, seed: int = 0, epoch: int = 0) -> np.ndarray:
        """uint8 [side, side, 3] of `pixels`, uint8 [H, W, 3], C-contiguous; a random crop draws from the last three."""
        return self.views(pixels, np.array([side]), key=key, seed=seed, epoch=epoch)[0]

    def views(
        self, pixels: np.ndarray, sides: np.ndarray, *, key: int = 0, seed: int = 0, epoch: int = 0
    ) -> list[np.ndarray]:
        """As a call, of each view, whose sides are int64 [V]."""
        height, width = pixels.shape[:2]
        sizes = 3 * sides * sides
        target = np.empty(sizes.sum(), np.uint8)
        position, _ = decode_samples(
            (
                np.array([pixels.ctypes.data], np.uint64),
                np.array([pixels.nbytes]),
                _RAW,
                np.array([height]),
                np.array([width]),
                np.array([key]),
            ),
            seed,
            epoch,
            (self._parameters, sides),
            target,
            0,
            1,
            self._scratch_for(max(height, width), int(sides.max())).arguments,
        )
        assert position < 0
        parts = np.split(target, np.cumsum(sizes)[:-1])
        return [part.reshape(side, side, 3) for part, side in zip(parts, sides, strict=True)]

    def _scratch_for(self, longest: int, side: int) -> Scratch:
        if self._scratch is None or longest > self._largest[0] or side > self._largest[1]:
            self._largest = (max(longest, self._largest[0]), max(side, self._largest[1]))
            self._scratch = Scratch(0, 0, *self._largest, len(self._parameters))
        return self._scratch
