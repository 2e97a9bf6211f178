"""The tables of viz/analysis.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from ffcv_train.analysis.tables import markdown_table


def logit_table(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Markdown of the summaries (`summarise`) of named inputs: one table of metrics, one of distributions."""
    threshold = summaries[0][1]["threshold"]
    header = ["input", "samples", "classes", "top-1 %", "top-5 %", "NLL", "ECE", f"near zero % (|z| < {threshold:g})"]
    metrics = [
        [
            label,
            f"{s['samples']:,}",
            f"{s['classes']:,}",
            *(f"{100 * s[key]:.2f}" for key in ("top_1", "top_5")),
            *(f"{s[key]:.4f}" for key in ("nll", "ece")),
            f"{100 * s['near_zero_share']:.2f}",
        ]
        for label, s in summaries
    ]
    parts = [
        [
            f"{label}, {part}",
            f"{s[part]['count']:,}",
            *(f"{s[part][key]['mean']:.3f} ± {s[part][key]['std']:.3f}" for key in ("max_logit", "norm", "margin")),
            f"{s[part]['confidence']['mean']:.3f}",
            f"{100 * s[part]['near_zero']['mean']:.2f}",
        ]
        for label, s in summaries
        for part in ("right", "wrong")
        if s[part] is not None
    ]
    columns = ["predictions", "samples", "largest logit", "norm", "margin", "confidence", "near zero %"]
    return (
        markdown_table(header, metrics)
        + "\nMean ± standard deviation over samples; the margin is the largest logit minus the second largest.\n\n"
        + markdown_table(columns, parts)
    )
