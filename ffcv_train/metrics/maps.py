"""What Grad-CAM leaves for a figure: maps beside their images."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Cell:
    """An image as a checkpoint sees it, and what it sees in it."""

    image: np.ndarray
    """uint8 [R, R, 3]"""
    heat: np.ndarray
    """float [R, R], at least 0, in the logit's unit"""
    predicted: str
    probability: float
    explained: str
    """The class that the map is of"""
    explained_probability: float
    true: str
    """Empty where it is not known"""
    correct: bool | None
    """Whether `predicted` is the true class; None where that is not known"""


@dataclass(frozen=True, eq=False)
class Row:
    """A checkpoint's cells, one per image."""

    label: str
    layer: str
    """Whose features the maps are of"""
    grid: tuple[int, int]
    cells: list[Cell]
