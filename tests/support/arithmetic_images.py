"""Small data sets of images made by integer arithmetic, so that other versions of this project have the very same."""

from pathlib import Path

import numpy as np

from tests.support.photographs import Samples, write_stock_beton


def arithmetic_samples(count: int, shift: int) -> Samples:
    """`count` images of 32 pixels a side in 4 classes that a network can tell apart."""
    y, x = np.mgrid[:32, :32]
    images = []
    for i in range(count):
        label, k = i % 4, i + shift
        planes = [(x * (3 + k % 5) + y * (2 + k % 7) + 37 * k) % 97, (x * y + 11 * k) % 89, (x + 5 * y * (k % 3)) % 83]
        image = np.stack(planes, axis=2)
        image[:, :, label % 3] += 60 if label == 3 else 130
        images.append(image.astype(np.uint8))
    return Samples(images, [i % 4 for i in range(count)])


def write_arithmetic_betons(folder: Path) -> None:
    """train.beton (48 images) and val.beton (24), raw."""
    for name, count, shift in (("train", 48, 0), ("val", 24, 1000)):
        write_stock_beton(folder / f"{name}.beton", arithmetic_samples(count, shift), "raw", 4)
