"""Tabulate and draw how far apart features lie: d_within, d_total and R² of Kornblith et al. (arXiv:2010.16402).

ffcv-train features --input maxsup_train.pt maxsup_val.pt ls_train.pt ls_val.pt --output features

The files need features: ffcv-train logits --features. Writes features.json, .md, .png and .svg.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.analysis.figures.features import draw_features, feature_table
from ffcv_train.analysis.figures.style import save_both
from ffcv_train.cli.figure_arguments import input_parser, progress_of, read_inputs
from ffcv_train.metrics.features import metrics_of, remarks
from ffcv_train.system.files import replace_text, write_json
from ffcv_train.system.progress import ProgressLine


def main(argv: Sequence[str]) -> None:
    """Parse, read, tabulate, draw."""
    options = input_parser(__doc__).parse_args(argv)
    inputs, folder = read_inputs(options, most=40), Path(options.output)
    for one in inputs:
        one.file.need_features()
    line = ProgressLine()
    named = [(one.label, metrics_of(one.file, progress_of(line, one.label))) for one in inputs]
    line.close()
    save_both(draw_features(named), folder, "features")
    records = [
        {"label": label, "file": str(one.file.path), "about": one.file.about, **dataclasses.asdict(metrics)}
        for one, (label, metrics) in zip(inputs, named, strict=True)
    ]
    write_json(folder / "features.json", {"format": 1, "inputs": records})
    table = feature_table(named, [one.file.data_set for one in inputs])
    replace_text(folder / "features.md", table)
    print(table)
    for label, metrics in named:
        for remark in remarks(metrics):
            print(f"note: {label}: {remark}")
    print(f"figure and tables: {folder}")
