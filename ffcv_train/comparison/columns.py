"""The columns of a comparison: what is compared, in which direction it is better, and how it is written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of the tables."""

    key: str
    title: str
    path: tuple[str, ...]
    """Where it stands in measures.json"""
    scale: float = 1.0
    digits: int = 4


METRICS = (
    Metric("top_1", "top-1 %", ("single", "top_1"), 100, 2),
    Metric("top_1_flip", "top-1 %, flip-averaged", ("flip_averaged", "top_1"), 100, 2),
    Metric("top_5", "top-5 %", ("single", "top_5"), 100, 2),
    Metric("nll", "NLL", ("single", "nll")),
    Metric("ece", "ECE", ("single", "ece")),
    Metric("train_top_1", "train top-1 %", ("train", "top_1"), 100, 2),
    Metric("train_nll", "train NLL", ("train", "nll")),
    Metric("d_within_train", "d_within train", ("features", "train", "d_within")),
    Metric("d_within_val", "d_within val", ("features", "val", "d_within")),
    Metric("d_total_train", "d_total train", ("features", "train", "d_total")),
    Metric("d_total_val", "d_total val", ("features", "val", "d_total")),
    Metric("r_squared_train", "R² train", ("features", "train", "r_squared")),
    Metric("r_squared_val", "R² val", ("features", "val", "r_squared")),
    Metric("transfer", "transfer %", ("transfer", "accuracy"), 100, 2),
)

_BY_KEY = {metric.key: metric for metric in METRICS}
