"""Draw and tabulate what the logits of one or more models look like, side by side.

ffcv-train analysis --input maxsup.pt ls.pt --labels MaxSup LS --output analysis

Writes near_zero, distributions and reliability as .png and .svg, and analysis.json and analysis.md.
"""

from collections.abc import Sequence
from pathlib import Path

from ffcv_train.analysis.figures.inputs import check_same_class_count
from ffcv_train.analysis.figures.logits import draw_distributions, draw_logit_density, draw_near_zero, logit_table
from ffcv_train.analysis.figures.reliability import draw_reliability
from ffcv_train.analysis.figures.style import save_both
from ffcv_train.cli.figure_arguments import input_parser, progress_of, read_inputs
from ffcv_train.metrics.calibration import calibration_of
from ffcv_train.metrics.logits import THRESHOLD, statistics_of, summarise_logits
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import replace_text, write_json
from ffcv_train.system.progress import ProgressLine


def main(argv: Sequence[str]) -> None:
    """Parse, read, draw, write."""
    parser = input_parser(__doc__)
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="Z", help=f"a logit is near zero below it [{THRESHOLD}]"
    )
    options = parser.parse_args(argv)
    if not options.threshold > 0:
        raise UserError(f"--threshold {options.threshold:g} must be more than 0")
    inputs, folder = read_inputs(options), Path(options.output)
    check_same_class_count(inputs)
    line = ProgressLine()
    named = [(one.label, statistics_of(one.file, options.threshold, progress_of(line, one.label))) for one in inputs]
    line.close()
    summaries = [(label, summarise_logits(statistics)) for label, statistics in named]
    curves = [
        calibration_of(statistics.metrics, one.label, f"{len(one.file):,} samples{of(one.file.data_set)}")
        for one, (_, statistics) in zip(inputs, named, strict=True)
    ]
    save_both(draw_near_zero(named), folder, "near_zero")
    save_both(draw_logit_density(named), folder, "density")
    save_both(draw_distributions(named), folder, "distributions")
    save_both(draw_reliability(curves), folder, "reliability")
    records = [
        {"label": one.label, "file": str(one.file.path), "about": one.file.about, **summary}
        for one, (_, summary) in zip(inputs, summaries, strict=True)
    ]
    write_json(folder / "analysis.json", {"format": 1, "inputs": records})
    table = logit_table(summaries)
    replace_text(folder / "analysis.md", table)
    print(table)
    print(f"figures and tables: {folder}")


def of(data_set: str) -> str:
    """The end of a caption."""
    return f" of {data_set}" if data_set else ""
