"""Images for the corruptions: what the reference in tests/data_files/corruptions.npz was computed on."""

import cv2
import numpy as np
from sklearn.datasets import load_sample_image


def reference_images() -> dict[str, np.ndarray]:
    """By the set of constants: uint8 [S, S, 3], at its benchmark's side."""
    crop = np.ascontiguousarray(load_sample_image("china.jpg")[100:324, 150:374])
    return {"imagenet": crop, "cifar": np.ascontiguousarray(crop[::7, ::7])}


def frost_photographs() -> dict[str, np.ndarray]:
    """In place of the authors' photographs, which are not ours to keep: smooth noise, uint8 [300, 320, 3], by name."""
    random = np.random.RandomState(0)
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    return {
        name: cv2.resize(
            random.randint(0, 256, (9, 10, 3)).astype(np.uint8), (320, 300), interpolation=cv2.INTER_LINEAR
        )
        for name in names
    }
