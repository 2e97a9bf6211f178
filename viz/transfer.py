"""Measure linear transfer of a checkpoint's features to another data set; --help describes every option.

python viz/transfer.py --checkpoint runs/my_run/final.pt --train train.beton --val val.beton --output transfer
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.analysis.style import make_folder, save_both
from ffcv_train.analysis.transfer_figure import draw_transfer, transfer_table
from ffcv_train.distributed import process_group
from ffcv_train.errors import run_main
from ffcv_train.records import replace_text, write_json
from ffcv_train.transfer import parse_transfer_request, run_transfer


def main() -> None:
    """Parse, measure, write."""
    request = parse_transfer_request(sys.argv[1:])
    folder = Path(request.options.folder)
    make_folder(folder)
    with process_group(request.config.training.device) as process:
        report = run_transfer(request, process)
    write_json(folder / "transfer.json", report)
    replace_text(folder / "transfer.md", transfer_table(report))
    save_both(draw_transfer(report), folder, "transfer")
    print(
        f"{report['accuracy']:.2%} on {report['val_set']} with λ = {report['strength']:.3g}, chosen on held-out samples"
    )
    if report["at_edge"]:
        print("note: the chosen strength ends the grid; a better one may lie beyond it")
    print(f"figure and tables: {folder}")


if __name__ == "__main__":
    run_main(main)
