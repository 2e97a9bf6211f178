"""Out-of-distribution detection: how well a score tells samples of the training's kind from others, in float64."""

import numpy as np
import torch
from torch import Tensor

_ROWS = 1024


def energy(logits: Tensor) -> np.ndarray:
    """log Σ_k exp z_k, float64 [N], of `logits` [N, K]: the negative energy at temperature 1 (arXiv:2010.03759)."""
    return torch.cat([part.double().logsumexp(dim=1) for part in logits.split(4096)]).numpy()


def nearest_similarity(features: Tensor, bank: Tensor, k: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Cosine to the `k`-th nearest of `bank` [M, D] for each of `features` [N, D]: float64 [N], the larger, the nearer.

    With unit vectors the Euclidean distance of arXiv:2204.06507 is √(2 − 2 cosine), of the same order. Computed in
    float32 on `device`. Raises `ValueError` for fewer than `k` in the bank.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"there are {len(bank)} samples, fewer than k={k}")
    unit = torch.nn.functional.normalize(bank.to(device), dim=1)
    found = []
    for part in features.split(_ROWS):
        cosines = torch.nn.functional.normalize(part.to(device), dim=1) @ unit.T
        found.append(cosines.topk(k, dim=1).values[:, -1].double().cpu())
    return torch.cat(found).numpy()


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well scores, higher for what is `inside`, tell it from what is `outside`; each float64 [at least 1].

    `auroc`: the chance that a sample inside scores higher than one outside, equal scores half; `fpr_95`: the share of
    samples outside that is accepted by the highest threshold that accepts 95% of those inside; `aupr_in`, `aupr_out`:
    average precision with either as the positive class. The values are scikit-learn's.
    """
    auroc, fpr_95, aupr_in = _ranked(inside, outside)
    return {"auroc": auroc, "fpr_95": fpr_95, "aupr_in": aupr_in, "aupr_out": _ranked(-outside, -inside)[2]}


def _ranked(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float, float]:
    """AUROC, false positives at 95% true ones, and average precision, by falling thresholds that take ties together."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)  # infinite ones can be equal
    true = np.cumsum(order < len(positive))[ends]
    false = ends + 1 - true
    recall, fall_out = true / len(positive), false / len(negative)
    auroc = np.trapezoid(np.append(0, recall), np.append(0, fall_out))
    fpr_95 = fall_out[np.argmax(recall >= 0.95)]
    precision = true / (true + false)
    return float(auroc), float(fpr_95), float((np.diff(np.append(0, recall)) * precision).sum())
