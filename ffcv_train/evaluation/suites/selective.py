"""`selective`: how few errors remain where the least sure predictions are left out."""

from typing import Any

from ffcv_train.evaluation.suites.subject import Examined
from ffcv_train.metrics.selective import confidence_scores, selective


def run(examined: Examined) -> dict[str, Any]:
    """Risk over all samples, and for each score what `selective` says."""
    correct = examined.outputs.correct.numpy()
    scores = confidence_scores(examined.outputs.logits)
    return {
        "samples": len(correct),
        "risk": float(1 - correct.mean()),
        "scores": {name: selective(score, correct) for name, score in scores.items()},
    }
