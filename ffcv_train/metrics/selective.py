"""Selective prediction: what a network gets right when it may leave out what it is least sure of, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RISKS = (0.01, 0.02, 0.05)
_CURVE_POINTS = 100


def confidence_scores(logits: Tensor) -> dict[str, np.ndarray]:
    """Scores of `logits` [N, K ≥ 1] on the CPU, float64 [N] each; the larger, the surer.

    `probability`: the largest softmax probability, as its log odds; `logit`: the largest; `margin`: that minus the
    second largest. Of one class alone the first and the last are infinite.
    """
    top, probability = [], []
    for part in logits.split(4096):
        z = part.double()
        top.append(torch.nn.functional.pad(z, (0, 1), value=-torch.inf).topk(2, dim=1).values)
        # Log odds keep apart what would round to 1.
        rest = z.scatter(1, z.argmax(dim=1, keepdim=True), -torch.inf).logsumexp(dim=1)
        probability.append(top[-1][:, 0] - rest)
    largest, second = torch.cat(top).numpy().T
    return {"probability": torch.cat(probability).numpy(), "logit": largest, "margin": largest - second}


def selective(score: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Risk and coverage where samples are accepted by falling `score`.

    `score` float64 [N], `correct` bool [N], N ≥ 1. Risk is the share of errors among those accepted; `aurc` its mean
    over the N coverages (Geifman et al., arXiv:1805.08206) and `excess_aurc` that minus the least possible with as many
    errors. Samples of equal score come in random order, and these are the expectations over it. `coverage_at_risk` is
    the largest share that a threshold accepts at a risk of no more than each of `RISKS`; a threshold takes equal scores
    together. `curve` has coverage and expected risk at 100 coverages, or at all of fewer samples.
    """
    count = len(score)
    errors = _accepted_errors(score, ~correct)
    accepted = np.arange(1, count + 1)
    risk = errors / accepted
    total = int((~correct).sum())
    least = np.maximum(accepted - (count - total), 0) / accepted
    ordered = np.sort(score)[::-1]
    thresholds = np.append(ordered[1:] != ordered[:-1], True)
    at_risk: Mapping[str, float] = {
        f"{level:g}": float(accepted[thresholds & (risk <= level)].max(initial=0) / count) for level in RISKS
    }
    points = np.unique(np.ceil(np.linspace(1 / _CURVE_POINTS, 1, _CURVE_POINTS) * count).astype(np.int64)) - 1
    return {
        "aurc": float(risk.mean()),
        "excess_aurc": float((risk - least).mean()),
        "coverage_at_risk": at_risk,
        "curve": {"coverage": (accepted[points] / count).tolist(), "risk": risk[points].tolist()},
    }


def _accepted_errors(score: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Expected errors among the first 1, 2, …, N samples by falling score, equal scores in random order."""
    values, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
    shares = np.bincount(group, wrong, len(values)) / sizes
    return np.cumsum(np.repeat(shares, sizes))
