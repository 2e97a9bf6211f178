"""Draw Grad-CAM of one or more checkpoints on a few images; --help describes every option.

python viz/gradcam.py --checkpoint maxsup.pt ls.pt --labels MaxSup LS --images photographs --output gradcam.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.analysis.gradcam_figure import draw_gradcam
from ffcv_train.analysis.style import save_both
from ffcv_train.distributed import process_group
from ffcv_train.errors import run_main
from ffcv_train.gradcam import parse_gradcam_request, record, run_gradcam
from ffcv_train.records import write_json


def main() -> None:
    """Parse, explain, draw."""
    request = parse_gradcam_request(sys.argv[1:])
    with process_group(request.config.training.device) as process:
        rows = run_gradcam(request, process)
    save_both(draw_gradcam(rows), request.output.parent, request.output.stem)
    write_json(request.output.with_suffix(".json"), record(request, rows))
    for row in rows:
        print(f"{row.label}: maps of {row.layer}, {row.grid[0]} × {row.grid[1]}")
    print(f"figure: {request.output}")


if __name__ == "__main__":
    run_main(main)
