"""What a row of the check finds, and how that is judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figure:
    """A number with the bounds that it must keep, inclusive; without bounds it is only reported."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bounds; what is not a number keeps none."""
        if self.most is None and self.least is None:
            return True
        value = self.value
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        bounds = [f"at most {_short(self.most)}"] if self.most is not None else []
        bounds += [f"at least {_short(self.least)}"] if self.least is not None else []
        told = f"{self.what} {_short(self.value)}"
        return f"{told} ({', '.join(bounds)})" if bounds else told


class NotJudged(Exception):  # noqa: N818 (not an error)
    """This row proves nothing on this machine; says why, with the figures that it has nevertheless."""

    def __init__(self, reason: str, figures: Sequence[Figure] = ()) -> None:
        told = ", ".join(map(str, figures))
        super().__init__(f"{reason} ({told})" if told else reason)
        self.figures = list(figures)


def _short(value: float) -> str:
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest |found − wanted|, in float64 on the CPU; infinite where a number is none, or shapes differ."""
    a, b = (tensor.detach().cpu().double() for tensor in (found, wanted))
    if a.shape != b.shape:
        return math.inf
    largest = (a - b).abs().amax().item() if a.numel() else 0.0
    return largest if math.isfinite(largest) else math.inf


def relative_distance(found: Tensor, wanted: Tensor) -> float:
    """`distance` as a share of the largest |wanted|."""
    size = wanted.detach().abs().amax().item()
    return distance(found, wanted) / (size if math.isfinite(size) and size > 0 else 1.0)


def total_distance(found: list[Tensor], wanted: list[Tensor], start: list[Tensor]) -> float:
    """How far networks of weights `found` and `wanted` lie apart, as a share of the way that `wanted` came."""
    a, b, c = (
        torch.cat([tensor.detach().cpu().double().flatten() for tensor in one]) for one in (found, wanted, start)
    )
    way = float((b - c).norm())
    apart = float((a - b).norm())
    return apart / way if math.isfinite(apart) and math.isfinite(way) and way > 0 else math.inf
