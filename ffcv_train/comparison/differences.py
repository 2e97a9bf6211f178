"""Each criterion's differences to the first one, with intervals over seeds, or of one seed over its test samples."""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from ffcv_train.comparison.measure import read_sample_results
from ffcv_train.comparison.plan import ComparisonPlan, PlannedRun
from ffcv_train.metrics.paired import RESAMPLES, Interval, bootstrap_intervals, paired_interval, seeds_needed
from ffcv_train.metrics.resampling import Statistic, aurc_of, calibration_error_of, coverage_of, mean_of
from ffcv_train.metrics.temperature import split_halves

PAIRED = (
    *("top_1", "nll", "ece", "d_within_val", "r_squared_val", "transfer"),
    *("nll_unscaled", "nll_scaled", "ece_unscaled", "ece_scaled", "brier", "brier_scaled"),
    *("aurc", "aurc_logit", "aurc_margin", "coverage_5", "many", "medium", "few"),
    *("auroc", "auroc_logit", "auroc_energy", "auroc_knn"),
    *("corrupted", "corrupted_nll", "corrupted_ece", "mce", "variants", "variants_nll", "real"),
)
"""The metrics whose differences are taken"""
RANKING_RESAMPLES = 500
"""Of what depends on the order of all samples, which takes several times longer"""

_Samples = Mapping[str, np.ndarray]
_Makers = Mapping[str, Callable[[_Samples], Statistic]]
_MEANS: _Makers = {
    "top_1": lambda samples: mean_of(samples["correct"]),
    "nll": lambda samples: mean_of(samples["nll"]),
    "ece": lambda samples: _calibration_error(samples),
}
_HELD_OUT: _Makers = {
    "nll_unscaled": lambda samples: mean_of(samples["nll"]),
    "ece_unscaled": lambda samples: _calibration_error(samples),
    "brier": lambda samples: mean_of(samples["brier"]),
}
_RANKINGS: _Makers = {
    "aurc": lambda samples: aurc_of(samples["probability"], samples["correct"]),
    "aurc_logit": lambda samples: aurc_of(samples["logit"], samples["correct"]),
    "aurc_margin": lambda samples: aurc_of(samples["margin"], samples["correct"]),
    "coverage_5": lambda samples: coverage_of(samples["probability"], samples["correct"], 0.05),
}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`values`, their mean, and their sample standard deviation, None for a single one."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.fmean(values), "sd": deviation}


def differences_to_first(
    plan: ComparisonPlan, criteria: Mapping[str, Any], measures: Mapping[PlannedRun, Mapping[str, Any]]
) -> dict[str, Any]:
    """For each of `criteria` but the first, its metrics minus the first one's, over the seeds that both have.

    `interval` is that of the mean difference: Student's over seeds; of one seed the bootstrap's over samples where
    `samples.npz` has what the metric is made of. It is None where there is none, and `exceeds`, whether 0 lies outside,
    with it.
    """
    found: dict[str, Any] = {}
    if len(criteria) < 2:
        return found
    (first, base), *others = criteria.items()
    for name, row in others:
        seeds = [seed for seed in row["seeds"] if seed in base["seeds"]]
        pairs = {}
        for key in PAIRED:
            if seeds and key in row["metrics"] and key in base["metrics"]:
                own, other = (
                    dict(zip(one["seeds"], one["metrics"][key]["values"], strict=True)) for one in (row, base)
                )
                pairs[key] = [own[seed] - other[seed] for seed in seeds]
        over_samples = {}
        if len(seeds) == 1:
            over_samples = intervals_over_samples(
                plan, measures, PlannedRun(name, seeds[0]), PlannedRun(first, seeds[0])
            )
        metrics = {}
        for key, values in pairs.items():
            several = len(values) > 1
            interval = paired_interval(values) if several else over_samples.get(key)
            metrics[key] = {
                **spread(values),
                "interval": None if interval is None else [interval.low, interval.high],
                "exceeds": None if interval is None else interval.exceeded,
                "seeds_needed": seeds_needed(values) if several else None,
            }
        if metrics:
            found[name] = {"seeds": seeds, "metrics": metrics}
    return found


def intervals_over_samples(
    plan: ComparisonPlan, measures: Mapping[PlannedRun, Mapping[str, Any]], run: PlannedRun, base: PlannedRun
) -> dict[str, Interval]:
    """By metric, the bootstrap interval of `run` minus `base` over the samples that both were measured on."""
    own, other = (read_sample_results(plan.folder(one) / "samples.npz") for one in (run, base))
    if own is None or other is None or len(own["correct"]) != len(other["correct"]):
        return {}
    count = len(own["correct"])
    held_out, same = (_held_out(measures[one], count) for one in (run, base))
    found = _bootstrap(_MEANS, own, other, RESAMPLES) | _bootstrap(_RANKINGS, own, other, RANKING_RESAMPLES)
    if held_out is not None and same is not None and np.array_equal(held_out, same):
        own_half, other_half = ({name: values[held_out] for name, values in one.items()} for one in (own, other))
        found |= _bootstrap(_HELD_OUT, own_half, other_half, RESAMPLES)
    return found


def _bootstrap(makers: _Makers, own: _Samples, other: _Samples, resamples: int) -> dict[str, Interval]:
    """Those metrics of `makers` that both files have the arrays for, resampled together."""
    pairs: dict[str, tuple[Statistic, Statistic]] = {}
    for key, make in makers.items():
        with contextlib.suppress(KeyError):  # an array that was not kept when the file was written
            pairs[key] = make(own), make(other)
    if not pairs:
        return {}

    def difference(counts: np.ndarray) -> np.ndarray:
        return np.concatenate([a(counts) - b(counts) for a, b in pairs.values()])

    return dict(zip(pairs, bootstrap_intervals(difference, len(own["correct"]), resamples), strict=True))


def _calibration_error(samples: _Samples) -> Statistic:
    return calibration_error_of(expit(samples["probability"]), samples["correct"])


def _held_out(content: Mapping[str, Any], count: int) -> np.ndarray | None:
    """The samples that the temperature was not fitted to, int64; None where none was fitted."""
    fitted_on = content.get("suites", {}).get("calibration", {}).get("fitted_on")
    if fitted_on is None:
        return None
    seed = fitted_on["split_seed"]
    return np.arange(count) if seed is None else split_halves(count, seed)[1].numpy()
