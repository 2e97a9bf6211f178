"""Draw the reliability diagram of one or more evaluations.

ffcv-train reliability --metrics maxsup.json ce.json --labels MaxSup CE --output reliability.png
"""

import argparse
from collections.abc import Sequence

from ffcv_train.analysis.figures.reliability import draw_reliability
from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.metrics.calibration import read_calibration
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path


def main(argv: Sequence[str]) -> None:
    """Parse, read, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--metrics", nargs="+", required=True, type=expand_path, metavar="FILE", help="what ffcv-train eval wrote"
    )
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="a name per file [the checkpoint's folder]")
    parser.add_argument(
        "--output", required=True, type=expand_path, metavar="FILE", help="figure to write: .png, .svg or .pdf"
    )
    parser.add_argument("--resolution", type=int, metavar="PX", help="side to show [the first in each file]")
    parser.add_argument("--flip-averaged", action="store_true", help="show the flip-averaged logits' calibration")
    options = parser.parse_args(argv)
    labels = options.labels or [""] * len(options.metrics)
    if len(labels) != len(options.metrics):
        raise UserError(f"{len(labels)} --labels do not name {len(options.metrics)} --metrics; give one per file")
    curves = [
        read_calibration(path, label=label, resolution=options.resolution, flip_averaged=options.flip_averaged)
        for path, label in zip(options.metrics, labels, strict=True)
    ]
    save_figure(draw_reliability(curves), options.output)
    print(f"figure: {options.output}")
