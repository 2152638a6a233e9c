"""How sure a mean over episodes is."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Z95 = 1.959964  # 97.5 % quantile of the normal distribution


def mean_and_ci95(values: "Tensor") -> tuple[float, float]:
    """Mean of `values` [E] and the half-width of its 95 % confidence interval, 1.96 s / sqrt(E).

    s is the standard deviation with E - 1 in its denominator. One value alone has no interval:
    its half-width is nan.
    """
    values = values.double()
    if len(values) < 2:
        return values.mean().item(), math.nan
    return values.mean().item(), (Z95 * values.std() / len(values) ** 0.5).item()


def of_few(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of a few independent values, t s / sqrt(n), by
    Student's t; nan for one, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with this many degrees of freedom, at least 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def mean_of_means(several: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of independent (mean, half-width) pairs, each counting the same, and its own."""
    means, halves = zip(*several, strict=True)
    return sum(means) / len(means), math.hypot(*halves) / len(halves)
