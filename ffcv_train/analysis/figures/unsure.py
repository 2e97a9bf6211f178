"""The figure of the images that a network is least sure of."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ffcv_train.analysis.figures.gradcam import percent, shorten

_COLUMNS = 6


def draw_unsure(
    images: Sequence[np.ndarray], names: Sequence[str], guesses: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """A grid of `images` (uint8 [R, R, 3]), each with its file's name above and its likeliest classes below."""
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(map(len, guesses))
    figure = Figure(figsize=(1.9 * columns, (2.0 + 0.15 * lines) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image, name, ranked in zip(grid.flat, images, names, guesses, strict=False):
        axes.imshow(image, interpolation="none")
        axes.set_title(shorten(name, 26), fontsize=7.5, pad=3)
        text = "\n".join(f"{shorten(label)} {percent(probability)}" for label, probability in ranked)
        axes.set_xlabel(text, fontsize=8, labelpad=3)
    return figure
