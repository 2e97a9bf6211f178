"""Draw how the loader cuts a crop's tiles out of a JPEG: `python -m benchmarks.draw_tiles docs/tiles.jpg`.

Everything shown is what the loader's own functions return for a photograph that scikit-learn brings.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

from ffcv_train.data.convert.encoding import encode_jpeg, restart_interval
from ffcv_train.data.kernels.decode import Scratch
from ffcv_train.data.kernels.jpeg import cut_tiles, parse_header
from ffcv_train.data.kernels.resample import BILINEAR, resize_crop
from ffcv_train.data.kernels.turbojpeg import decode_jpeg

matplotlib.use("agg")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CROP = (118, 190, 150, 190)  # top, left, height, width
SIDE = 160
GRID, WANTED, BOX = "white", "#0072b2", "#e69f00"


def main() -> None:
    """Write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()

    photograph = np.ascontiguousarray(load_sample_image("china.jpg")[:384, :512])
    height, width = photograph.shape[:2]
    data = np.frombuffer(encode_jpeg(photograph, 90, tiles=True), np.uint8)
    scratch = Scratch(photograph.nbytes, len(data), max(height, width), SIDE)
    assert parse_header(data, scratch.header)
    size = cut_tiles(data, scratch.header, *CROP, scratch.tiles, scratch.region)
    top, left, rows, columns = scratch.region.tolist()
    decode_jpeg(scratch.tiles.ctypes.data, size, rows, columns, scratch.image)
    part = scratch.image[: rows * columns * 3].reshape(rows, columns, 3)
    result = np.empty((SIDE, SIDE, 3), np.uint8)
    box = (CROP[0] - top, CROP[1] - left, *CROP[2:])
    work = (scratch.row, scratch.weights, scratch.spans)
    whole = (0.0, 0.0, float(CROP[2]), float(CROP[3]))
    resize_crop(scratch.image, columns, *box, *whole, False, BILINEAR, result, *work)

    plt.rcParams.update({"font.size": 9})
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.2), width_ratios=[width, columns, SIDE + 30], layout="constrained")
    tile_width = 16 * restart_interval(width)
    axes[0].imshow(photograph)
    for y in range(0, height, 16):
        for x in range(0, width, tile_width):
            inside = top <= y < top + rows and left <= x < left + columns
            face = {"facecolor": WANTED, "alpha": 0.35} if inside else {"fill": False, "alpha": 0.5}
            axes[0].add_patch(Rectangle((x, y), tile_width, 16, edgecolor=GRID, linewidth=0.5, **face))
    axes[0].add_patch(Rectangle(CROP[1::-1], CROP[3], CROP[2], fill=False, edgecolor=BOX, linewidth=2))
    axes[0].set_title(f"in the file\n{len(data) / 1000:.0f} kB, {width} × {height} px")
    axes[1].imshow(part)
    axes[1].add_patch(Rectangle(box[1::-1], CROP[3], CROP[2], fill=False, edgecolor=BOX, linewidth=2))
    axes[1].set_title(f"cut out and decoded\n{size / 1000:.0f} kB, {columns} × {rows} px")
    axes[2].imshow(result)
    axes[2].set_title(f"resized\n{SIDE} × {SIDE} px")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(arguments.output, dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
