"""Multinomial logistic regression on frozen features, its L2 strength chosen on a held-out part of the training set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))
"""45 log-spaced strengths from 1e-6 to 1e5 (Kornblith et al., arXiv:1805.08974)"""
HELD_OUT = 0.2
MAX_ITERATIONS = 1000
_BLOCK = 1 << 24  # numbers of a block of logits
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Fit:
    """A fitted classifier: logits = features @ weight.T + bias."""

    weight: Tensor
    """[K, D], in the type that the fit computed in"""
    bias: Tensor
    """[K]; its sum is 0"""
    iterations: int
    converged: bool
    """Whether it stopped before `MAX_ITERATIONS`"""


@dataclass(frozen=True)
class Candidate:
    """One strength of the grid, fitted on the part of the training set that was not held out."""

    strength: float
    accuracy: float
    """On the held-out part, in [0, 1]"""
    nll: float
    """On the held-out part, in nats"""
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Probe:
    """The outcome of `linear_probe`."""

    accuracy: float
    """On the test set, in [0, 1], of the fit to the whole training set at `strength`"""
    strength: float
    at_edge: bool
    """Whether `strength` is an end of the grid: a wider one may give more"""
    curve: tuple[Candidate, ...]
    """A candidate per strength, from the weakest to the strongest"""
    fit: Fit
    train_samples: int
    held_out_samples: int
    test_samples: int


class Regression:
    """The problem of minimising Σ_i H(y_i, softmax(W x_i + b)) + (λ/2) ‖W‖², b free, for any number of λ.

    That is scikit-learn's `LogisticRegression(C=1/λ)`. The features are centred and turned to their principal axes,
    and each axis is scaled by about the root of its curvature; that changes no solution (a rotation keeps the norm,
    and the penalty follows the scale), but lets L-BFGS arrive in tens of steps where the raw features need thousands.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """`features` [N, D], computed in float64 where they are float64, else in float32; `labels` int64 [N] < K.

        Raises `ValueError` on other shapes, on features that are not finite, and where N is 0.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(f"need features [N, D] and labels [N], not {list(features.shape)}, {list(labels.shape)}")
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(f"labels must lie in [0, {num_classes})")
        x = features if features.dtype in _DTYPES else features.float()
        self.labels, self.num_classes = labels, num_classes
        self.mean = x.double().mean(dim=0)
        if not bool(self.mean.isfinite().all()):
            raise ValueError("the features are not finite")
        centred = x - self.mean.to(x.dtype)
        covariance = (centred.T @ centred).double() / len(x)
        values, axes = torch.linalg.eigh(covariance)
        self.variances, self.axes = values.clamp_min(0.0), axes
        self.rotated = centred @ axes.to(x.dtype)

    def fit(self, strength: float, start: Fit | None = None, max_iterations: int = MAX_ITERATIONS) -> Fit:
        """The minimum for λ = `strength`, found from `start`, else from 0."""
        x, n, k = self.rotated, len(self.labels), self.num_classes
        penalty = strength / n
        weight = torch.zeros(k, x.shape[1], dtype=x.dtype, device=x.device)
        bias = torch.zeros(k, dtype=x.dtype, device=x.device)
        if start is not None:
            weight = (start.weight.double() @ self.axes).to(x.dtype)
            bias = (start.bias.double() + start.weight.double() @ self.mean).to(x.dtype)
        first, softness = self._value(weight, bias, penalty)
        # Near its minimum the objective, divided by its first value, is then about half a squared norm, however small
        # it is: the tolerances are relative. Axes without variance are not moved.
        curvature = (self.variances * softness + penalty) / first
        floor = 1e-12 * float(curvature.max()) + torch.finfo(torch.float64).tiny
        scale = curvature.clamp_min(floor).rsqrt().to(x.dtype)
        bias_scale = (first / max(softness, 1e-12)) ** 0.5
        parameters = torch.cat([weight / scale, bias[:, None] / bias_scale], dim=1).requires_grad_(True)

        def closure() -> Tensor:
            weight, bias = parameters.detach()[:, :-1] * scale, parameters.detach()[:, -1] * bias_scale
            gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
            loss = torch.zeros((), dtype=torch.float64, device=x.device)
            for part, labels in self._blocks():
                log_q = torch.log_softmax(torch.addmm(bias, part, weight.T), dim=1)
                loss -= log_q.gather(1, labels).double().sum()
                error = log_q.exp_().scatter_add_(1, labels, torch.full_like(labels, -1, dtype=x.dtype))
                gradient += error.T @ part
                bias_gradient += error.sum(dim=0)
            gradient = (gradient / n + penalty * weight) * scale
            parameters.grad = torch.cat([gradient, bias_gradient[:, None] * (bias_scale / n)], dim=1) / first
            return (loss / n + penalty / 2 * weight.double().square().sum()) / first

        precise = x.dtype == torch.float64
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            history_size=20,
            tolerance_grad=1e-7 if precise else 1e-4,
            tolerance_change=1e-13 if precise else 1e-8,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)
        state = optimizer.state[parameters]
        found = parameters.detach()
        weight = (found[:, :-1] * scale).double() @ self.axes.T
        bias = found[:, -1].double() * bias_scale - weight @ self.mean
        iterations = state["n_iter"]
        converged = iterations < max_iterations and state["func_evals"] < 2 * max_iterations
        return Fit(weight.to(x.dtype), (bias - bias.mean()).to(x.dtype), iterations, converged)

    def _value(self, weight: Tensor, bias: Tensor, penalty: float) -> tuple[float, float]:
        """The objective per sample, and the mean of p (1 − p) over samples and classes: the curvature of the logits."""
        loss, softness = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for part, labels in self._blocks():
            log_q = torch.log_softmax(torch.addmm(bias, part, weight.T), dim=1)
            loss -= log_q.gather(1, labels).double().sum().cpu()
            q = log_q.exp()
            softness += (q * (1 - q)).double().sum().cpu()
        n = len(self.labels)
        value = float(loss / n + penalty / 2 * weight.double().square().sum().cpu())
        return max(value, 1e-30), float(softness / (n * self.num_classes))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the rotated features, and their labels [B, 1]."""
        rows = max(1, _BLOCK // self.num_classes)
        for first in range(0, len(self.labels), rows):
            yield self.rotated[first : first + rows], self.labels[first : first + rows, None]


def linear_probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    grid: Sequence[float] = GRID,
    held_out: float = HELD_OUT,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Probe:
    """Accuracy on `test` of logistic regression fitted to `train`; both are (features [N, D], labels int64 [N]).

    The strength of `grid` with the best accuracy on the held-out share of `train` (drawn by class, from `seed`; ties go
    to the lower NLL) is fitted again to all of `train`. The grid is walked from the strongest value on, each fit
    starting from the last. Memory: a copy of the training features and two of [D, D]. Raises `ValueError`.
    """
    if not grid or min(grid) <= 0:
        raise ValueError("need at least one strength, each above 0")
    features, labels = train
    away = held_out_mask(labels, held_out, seed)
    problem = Regression(features[~away], labels[~away], num_classes)
    curve, fits, fit = [], {}, None
    strengths = sorted(grid, reverse=True)
    for number, strength in enumerate(strengths):
        progress(number, len(strengths) + 1)
        fits[strength] = fit = problem.fit(strength, fit)
        accuracy, nll = score(fit, features[away], labels[away])
        curve.append(Candidate(strength, accuracy, nll, fit.iterations, fit.converged))
    best = max(curve, key=lambda candidate: (candidate.accuracy, -candidate.nll)).strength
    progress(len(strengths), len(strengths) + 1)
    del problem
    fit = Regression(features, labels, num_classes).fit(best, fits[best])
    progress(len(strengths) + 1, len(strengths) + 1)
    return Probe(
        accuracy=score(fit, *test)[0],
        strength=best,
        at_edge=best in (strengths[0], strengths[-1]),
        curve=tuple(reversed(curve)),
        fit=fit,
        train_samples=len(labels),
        held_out_samples=int(away.sum()),
        test_samples=len(test[1]),
    )


def held_out_mask(labels: Tensor, share: float, seed: int) -> Tensor:
    """bool [N]: which samples are held out, `share` of each class, rounded down; the same for the same `seed`.

    Raises `ValueError` where that leaves no sample on either side.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = order[labels.cpu()[order] == label]
        mask[members[: int(len(members) * share)]] = True
    if not bool(mask.any()) or bool(mask.all()):
        raise ValueError(f"{len(labels)} training samples are too few to hold {share:.0%} of each class out")
    return mask.to(labels.device)


def score(fit: Fit, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """(accuracy in [0, 1], NLL in nats) of `fit` on features [N, D] and labels int64 [N]."""
    hits, nll, rows = 0, 0.0, max(1, _BLOCK // len(fit.bias))
    for first in range(0, len(labels), rows):
        part, own = features[first : first + rows].to(fit.weight.dtype), labels[first : first + rows]
        logits = torch.addmm(fit.bias, part, fit.weight.T)
        hits += int((logits.argmax(dim=1) == own).sum())
        nll += float(torch.nn.functional.cross_entropy(logits.double(), own, reduction="sum"))
    return hits / len(labels), nll / len(labels)
