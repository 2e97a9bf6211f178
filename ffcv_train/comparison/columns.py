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
    better: int = 0
    """1: larger is better, -1: smaller is, 0: neither"""


METRICS = (
    Metric("top_1", "top-1 %", ("single", "top_1"), 100, 2, 1),
    Metric("top_1_flip", "top-1 %, flip-averaged", ("flip_averaged", "top_1"), 100, 2, 1),
    Metric("top_5", "top-5 %", ("single", "top_5"), 100, 2, 1),
    Metric("nll", "NLL", ("single", "nll"), better=-1),
    Metric("ece", "ECE", ("single", "ece"), better=-1),
    Metric("train_top_1", "train top-1 %", ("train", "top_1"), 100, 2),
    Metric("train_nll", "train NLL", ("train", "nll")),
    Metric("d_within_train", "d_within train", ("features", "train", "d_within")),
    Metric("d_within_val", "d_within val", ("features", "val", "d_within")),
    Metric("d_total_train", "d_total train", ("features", "train", "d_total")),
    Metric("d_total_val", "d_total val", ("features", "val", "d_total")),
    Metric("r_squared_train", "R² train", ("features", "train", "r_squared")),
    Metric("r_squared_val", "R² val", ("features", "val", "r_squared")),
    Metric("transfer", "transfer %", ("transfer", "accuracy"), 100, 2, 1),
    Metric("temperature", "temperature", ("suites", "calibration", "temperature"), 1, 3),
    Metric("nll_unscaled", "NLL, unscaled", ("suites", "calibration", "before", "nll"), better=-1),
    Metric("nll_scaled", "NLL, scaled", ("suites", "calibration", "after", "nll"), better=-1),
    Metric("ece_unscaled", "ECE, unscaled", ("suites", "calibration", "before", "ece"), better=-1),
    Metric("ece_scaled", "ECE, scaled", ("suites", "calibration", "after", "ece"), better=-1),
    Metric("brier", "Brier, unscaled", ("suites", "calibration", "before", "brier"), better=-1),
    Metric("brier_scaled", "Brier, scaled", ("suites", "calibration", "after", "brier"), better=-1),
    Metric("aurc", "AURC, probability", ("suites", "selective", "scores", "probability", "aurc"), better=-1),
    Metric("aurc_logit", "AURC, logit", ("suites", "selective", "scores", "logit", "aurc"), better=-1),
    Metric("aurc_margin", "AURC, margin", ("suites", "selective", "scores", "margin", "aurc"), better=-1),
    Metric("excess_aurc", "excess AURC", ("suites", "selective", "scores", "probability", "excess_aurc"), better=-1),
    Metric(
        "coverage_5",
        "coverage at 5% risk, %",
        ("suites", "selective", "scores", "probability", "coverage_at_risk", "0.05"),
        100,
        2,
        1,
    ),
    Metric("many", "many-shot %", ("suites", "groups", "groups", "many", "accuracy"), 100, 2, 1),
    Metric("medium", "medium-shot %", ("suites", "groups", "groups", "medium", "accuracy"), 100, 2, 1),
    Metric("few", "few-shot %", ("suites", "groups", "groups", "few", "accuracy"), 100, 2, 1),
    Metric("auroc", "AUROC, probability %", ("suites", "ood", "mean", "probability", "auroc"), 100, 2, 1),
    Metric("auroc_logit", "AUROC, logit %", ("suites", "ood", "mean", "logit", "auroc"), 100, 2, 1),
    Metric("auroc_energy", "AUROC, energy %", ("suites", "ood", "mean", "energy", "auroc"), 100, 2, 1),
    Metric("auroc_knn", "AUROC, neighbour %", ("suites", "ood", "mean", "knn", "auroc"), 100, 2, 1),
    Metric("fpr_95", "FPR at 95%, probability %", ("suites", "ood", "mean", "probability", "fpr_95"), 100, 2, -1),
    Metric("corrupted", "error, corrupted %", ("suites", "corruptions", "mean", "error"), 100, 2, -1),
    Metric("corrupted_nll", "NLL, corrupted", ("suites", "corruptions", "mean", "nll"), better=-1),
    Metric("corrupted_ece", "ECE, corrupted", ("suites", "corruptions", "mean", "ece"), better=-1),
    Metric("mce", "mCE %", ("suites", "corruptions", "mce"), 100, 2, -1),
    Metric("variants", "top-1, variants %", ("suites", "variants", "mean", "top_1"), 100, 2, 1),
    Metric("variants_nll", "NLL, variants", ("suites", "variants", "mean", "nll"), better=-1),
    Metric("real", "top-1, ReaL %", ("suites", "variants", "real", "top_1"), 100, 2, 1),
)

_BY_KEY = {metric.key: metric for metric in METRICS}
