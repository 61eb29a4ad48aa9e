"""Means and shares with 95 % intervals, and the paired test of two shares: for hundreds of items, and for shares near 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval: right for small n, and for shares near 0 and 1.

    >>> e = wilson(90, 100)
    >>> round(e.low, 4), round(e.high, 4)
    (0.8256, 0.9448)
    """
    if n < 1:
        raise ValueError("a share of no items has no interval; give at least one.")
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def mean(values: Sequence[float]) -> Estimate:
    """A mean with its normal interval."""
    n = len(values)
    middle = sum(values) / n
    half = Z * math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.inf
    return Estimate(middle, middle - half, middle + half, n)


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """A ratio of two sums over the same items, such as nats over tokens; normal interval of the linearised ratio.

    >>> e = ratio([2, 4, 6], [1, 2, 3])
    >>> e.mean, e.low, e.high
    (2.0, 2.0, 2.0)
    """
    middle = sum(above) / sum(below)
    errors = mean([a - middle * b for a, b in zip(above, below, strict=True)])
    half = abs(errors.high - errors.mean) * len(below) / abs(sum(below))
    return Estimate(middle, middle - half, middle + half, len(below))


def share(values: Sequence[float]) -> Estimate:
    """Scores between 0 and 1: Wilson's interval if all are 0 or 1, else the normal one within 0..1."""
    if all(v in (0, 1) for v in values):
        return wilson(int(sum(values)), len(values))
    e = mean(values)
    return Estimate(e.mean, max(0.0, e.low), min(1.0, e.high), e.n)


def bootstrap(statistic: Callable[[NDArray[np.float64]], float], n: int, draws: int = 1000) -> Estimate:
    """A statistic of a whole set, with the percentile interval of sets drawn from it with repeats, always the same ones.

    Args:
        statistic: of (n,) weights, how often each item is in the set.
    """
    random = np.random.default_rng(0)
    found = [statistic(np.bincount(random.integers(n, size=n), minlength=n).astype(float)) for _ in range(draws)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(statistic(np.ones(n)), float(low), float(high), n)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that as many items are gained as lost: a fair coin thrown gained + lost times.

    >>> mcnemar(1, 5)
    0.21875
    """
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def paired_difference(gained: int, lost: int, n: int) -> Estimate:
    """Difference of two paired shares; interval of Agresti and Min (2005, Statistics in Medicine 24), which adds half an item to
    each cell of the 2 x 2 table, so that two rows that never differ do not get an interval of width 0."""
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / m
    half = Z * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return Estimate((gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), n)
