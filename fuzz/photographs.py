"""The photographs that all files to be damaged show."""

from functools import cache

import numpy as np


@cache
def photographs() -> list[np.ndarray]:
    """Two photographs, uint8 [427, 640, 3], RGB, which come with scikit-learn."""
    # Takes longer to import than everything else here, and the processes that fuzz do without.
    from sklearn.datasets import load_sample_images

    return load_sample_images().images
