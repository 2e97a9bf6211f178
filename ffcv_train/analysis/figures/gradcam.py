"""The figure of Grad-CAM: the images, and below them a row of maps per checkpoint."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ffcv_train.analysis.figures.style import RIGHT, WRONG
from ffcv_train.metrics.maps import Row

# Perceptually even, and from dark to light in greyscale too.
_COLORS = "inferno"


def draw_gradcam(rows: Sequence[Row]) -> Figure:
    """The images with their true classes, then a row of overlays per checkpoint with the predictions above them.

    Each map is scaled to its own largest value, so that colours compare positions, not images. All rows have the same
    number of cells.
    """
    columns = len(rows[0].cells)
    explained = any(cell.explained != cell.predicted for row in rows for cell in row.cells)
    height = 1.9 + len(rows) * (2.05 if explained else 1.9) + (0.25 if any(c.true for c in rows[0].cells) else 0)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(1.62 * columns + 0.75, height), layout=layout)
    grid = figure.subplots(len(rows) + 1, columns, squeeze=False)
    for axes, cell in zip(grid[0], rows[0].cells, strict=True):
        axes.imshow(cell.image, interpolation="none")
        axes.set_title(shorten(cell.true), fontsize=8.5, fontweight="bold", pad=3)
    _name(grid[0, 0], "image")
    for line, row in zip(grid[1:], rows, strict=True):
        _name(line[0], row.label)
        for axes, cell in zip(line, row.cells, strict=True):
            axes.imshow(overlay(cell.image, cell.heat), interpolation="none")
            color = {True: RIGHT, False: WRONG, None: "black"}[cell.correct]
            mark = {True: " ✓", False: " ✗", None: ""}[cell.correct]
            text = f"{shorten(cell.predicted)}\n{percent(cell.probability)}{mark}"
            axes.set_title(text, fontsize=8, color=color, pad=3)
            if cell.explained != cell.predicted:
                text = f"map: {shorten(cell.explained)} {percent(cell.explained_probability)}"
                axes.set_xlabel(text, fontsize=7, labelpad=2)
            if not cell.heat.max() > 0:
                axes.text(0.5, 0.5, "no evidence", transform=axes.transAxes, ha="center", color="white", fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image (uint8 [R, R, 3]) in grey under the map's colours (`heat` [R, R], at least 0): uint8 [R, R, 3].

    Where the map is 0 the image is darkened; where it is largest the colour covers most of it.
    """
    most = float(heat.max())
    share = heat / most if most > 0 else np.zeros_like(heat)
    colors = colormaps[_COLORS](share)[..., :3]
    # Luma of ITU-R BT.601: what Pillow's conversion to grey takes.
    grey = (image.astype(np.float64) @ (0.299, 0.587, 0.114))[..., None] / 255
    cover = (0.3 + 0.3 * share)[..., None]
    return np.round(255 * np.clip((1 - cover) * grey + cover * colors, 0, 1)).astype(np.uint8)


def percent(share: float) -> str:
    """A probability for a caption; never rounded up to 100%."""
    return ">99.9%" if 0.9995 <= share < 1 else f"{100 * share:.1f}%"


def shorten(text: str, most: int = 20) -> str:
    """`text`, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _name(axes: Axes, text: str) -> None:
    axes.set_ylabel(shorten(text, 24), fontsize=9)
