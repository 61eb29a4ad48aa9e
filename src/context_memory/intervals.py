"""Means and shares with 95 % intervals, and the paired test of two shares: for hundreds of items, and for shares near 0 and 1.

`groups` says which items belong together (the questions of one user, one question after several draws of demonstrations), an item's
group in the place of the item; without it every item is by itself. Such items say less than as many independent ones: the deviations
of a group are added up before they are squared (Liang and Zeger 1986, Biometrika 73), a share has Wilson's interval of so many
independent items as would have that variance, and a bootstrap draws whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


def wilson(successes: float, n: float) -> Estimate:
    """A share with Wilson's score interval: right for small n, and for shares near 0 and 1.

    >>> e = wilson(90, 100)
    >>> round(e.low, 4), round(e.high, 4)
    (0.8256, 0.9448)
    """
    if n <= 0:
        raise ValueError("a share of no items has no interval; give at least one.")
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), round(n))


def mean(values: Sequence[float], groups: Sequence[str] = ()) -> Estimate:
    """A mean with its normal interval.

    >>> apart, together = mean([0, 0, 2, 2]), mean([0, 0, 2, 2], "aabb")
    >>> round(apart.high - 1, 4), round(together.high - 1, 4)  # two pairs that say the same are two items
    (1.1316, 1.96)
    """
    n = len(values)
    middle = sum(values) / n
    sums = _sums([v - middle for v in values], groups)
    half = Z * math.sqrt(sum(s * s for s in sums) * len(sums) / (len(sums) - 1)) / n if len(sums) > 1 else math.inf
    return Estimate(middle, middle - half, middle + half, n)


def _sums(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Of every group."""
    if not groups:
        return list(values)
    sums = dict.fromkeys(groups, 0.0)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value
    return list(sums.values())


def worth(values: Sequence[float], groups: Sequence[str] = ()) -> float:
    """How many independent items would know the mean as well: at most n, and of items that are all alike as many as there are groups.

    >>> round(worth([0, 0, 1, 1] * 50, ["a", "b", "c", "d"] * 50), 1), worth([0, 1, 1, 0])
    (3.0, 4)
    """
    n = len(values)
    if not groups or len(set(groups)) == n:
        return n
    alone, together = mean(values), mean(values, groups)
    if together.high == together.mean or not math.isfinite(together.high):
        return len(set(groups))
    return min(n, n * ((alone.high - alone.mean) / (together.high - together.mean)) ** 2)


def ratio(above: Sequence[float], below: Sequence[float], groups: Sequence[str] = ()) -> Estimate:
    """A ratio of two sums over the same items, such as nats over tokens; normal interval of the linearised ratio.

    >>> e = ratio([2, 4, 6], [1, 2, 3])
    >>> e.mean, e.low, e.high
    (2.0, 2.0, 2.0)
    """
    middle = sum(above) / sum(below)
    errors = mean([a - middle * b for a, b in zip(above, below, strict=True)], groups)
    half = abs(errors.high - errors.mean) * len(below) / abs(sum(below))
    return Estimate(middle, middle - half, middle + half, len(below))


def share(values: Sequence[float], groups: Sequence[str] = ()) -> Estimate:
    """Scores between 0 and 1: Wilson's interval if all are 0 or 1, else the normal one within 0..1."""
    if all(v in (0, 1) for v in values):
        n = worth(values, groups)
        return replace(wilson(sum(values) * n / len(values), n), n=len(values))
    e = mean(values, groups)
    return Estimate(e.mean, max(0.0, e.low), min(1.0, e.high), e.n)


def bootstrap(statistic: Callable[[NDArray[np.float64]], float], n: int, groups: Sequence[str] = (), draws: int = 1000) -> Estimate:
    """A statistic of a whole set, with the percentile interval of sets drawn from it with repeats, always the same ones.

    Args:
        statistic: of (n,) weights, how often each item is in the set; NaN where it has no value.
    """
    random = np.random.default_rng(0)
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    number = np.array([names[g] for g in groups]) if groups else np.arange(n)
    m = len(names) or n
    found = [statistic(np.bincount(random.integers(m, size=m), minlength=m)[number].astype(float)) for _ in range(draws)]
    known = [x for x in found if not math.isnan(x)]  # a set that has nothing of one kind may have no value
    low, high = np.percentile(known, [2.5, 97.5]) if known else (math.nan, math.nan)
    return Estimate(statistic(np.ones(n)), float(low), float(high), n)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that as many items are gained as lost: a fair coin thrown gained + lost times.

    >>> mcnemar(1, 5)
    0.21875
    """
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def paired_difference(differences: Sequence[float], groups: Sequence[str] = ()) -> Estimate:
    """Difference of two paired shares, of 1 (gained), 0 and -1 (lost) an item; interval of Agresti and Min (2005, Statistics in Medicine
    24), which adds half an item to each cell of the 2 x 2 table, so that two rows that never differ do not get an interval of width 0."""
    n = len(differences)
    scale = worth(differences, groups) / n
    b, c, m = sum(d > 0 for d in differences) * scale + 0.5, sum(d < 0 for d in differences) * scale + 0.5, n * scale + 2
    centre = (b - c) / m
    half = Z * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return Estimate(sum(differences) / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def sign_test(differences: Sequence[float], groups: Sequence[str] = ()) -> float:
    """McNemar's exact test; of groups, whether as many of them gain in all as lose.

    >>> sign_test([1, -1, -1, -1, -1, -1]), sign_test([1, 1, -1, -1, -1, -1], "aabbcc")
    (0.21875, 1.0)
    """
    sums = _sums(differences, groups)
    return mcnemar(sum(s > 0 for s in sums), sum(s < 0 for s in sums))
