"""What the figures have in common: colours, dashes, markers, and how they are written."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffcv_train.analysis.figures.texts import settle_texts
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, replace_file

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's colours, told apart by the colour-blind; dash and marker tell the lines apart in greyscale.
STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#000000", ":", "^"),
    ("#009E73", "-.", "D"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#E69F00", (0, (1, 1)), "P"),
)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all, in the format that the file's ending says. Raises `UserError`."""
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{path} must end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}, the formats of figures")
    settle_texts(figure)
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=200)
    replace_file(path, content.getvalue())


# Made for the colour-blind; the more, the darker, so that greyscale keeps the order.
DENSITY = "cividis_r"
RIGHT, WRONG = "#0072B2", "#D55E00"
MAX_INPUTS = len(STYLES)


def check_input_count(count: int, what: str = "a figure") -> None:
    """Raise `UserError` for more inputs than can be told apart, or none."""
    if not 1 <= count <= MAX_INPUTS:
        raise UserError(f"{what} shows 1 to {MAX_INPUTS} inputs, not {count}; give fewer")


def tidy_axes(axes: Axes) -> None:
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
