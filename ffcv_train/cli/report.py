"""Write one HTML page of a run, of several runs, or of a folder of ffcv-train compare; it opens without a network.

ffcv-train report runs/maxsup runs/ls --output report.html

The page holds results, what to try next where something looks wrong, curves over epochs, and settings. What else lies
in a run's folder comes along: pictures (.png, .svg) in it and in figures/, where the other commands can write with
--output RUN/figures; metrics that ffcv-train eval --output wrote into it; features.json and transfer.json; and files of
ffcv-train logits in it or in logits/, of which the page draws logits, calibration and features.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.analysis.report.page import make_page
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, replace_text


def main(argv: Sequence[str]) -> None:
    """Parse, read, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", type=expand_path, metavar="RUN", help="folders of runs, or one of ffcv-train compare"
    )
    parser.add_argument("--output", required=True, type=expand_path, metavar="FILE.html", help="page to write")
    parser.add_argument(
        "--logits", nargs="+", default=[], type=expand_path, metavar="FILE", help="more files of logits to show"
    )
    options = parser.parse_args(argv)
    output = Path(options.output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output} must end in .html")
    page = make_page(options.runs, options.logits)
    replace_text(output, page)
    print(f"page: {output} ({len(page.encode()) / 1e6:.1f} MB)")
