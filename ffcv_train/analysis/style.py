"""What the figures have in common: colours, dashes, markers, and how they are written."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffcv_train.analysis.reliability import STYLES, save_figure
from ffcv_train.errors import UserError
from ffcv_train.records import disk_errors

# Made for the colour-blind; the more, the darker, so that greyscale keeps the order.
DENSITY = "cividis_r"
RIGHT, WRONG = "#0072B2", "#D55E00"
MAX_INPUTS = len(STYLES)


def check_input_count(count: int, what: str = "a figure") -> None:
    """Raise `UserError` for more inputs than can be told apart, or none."""
    if not 1 <= count <= MAX_INPUTS:
        raise UserError(f"{what} shows 1 to {MAX_INPUTS} inputs, not {count}; give fewer")


def tidy(axes: Axes) -> None:
    """Light grid behind, no frame above and to the right."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_both(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into `folder`, which is made; returns their paths. Raises `UserError`."""
    make_folder(folder)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        save_figure(figure, path)
    return paths


def make_folder(folder: Path) -> None:
    """Make an output folder. Raises `UserError` where that fails."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
