"""Macro F1 of answers that are classes: every class counts the same, however rare. A score of a set; its interval is a bootstrap's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from context_memory.intervals import Estimate, bootstrap

Answer = tuple[str, str, str]
"""To which classes the item belongs, the right one, the one that was answered; an empty answer is none of them."""


def macro_f1(answers: Sequence[Answer], groups: Sequence[str] = ()) -> Estimate:
    """The mean of F1 over the classes that are right or answered somewhere; of several sets of classes, the mean over the sets.

    >>> e = macro_f1([("", "a", "a"), ("", "a", "a"), ("", "a", "b"), ("", "b", "b"), ("", "b", "")])
    >>> round(e.mean, 4)  # a: 2 / (2 + 1/2), b: 1 / (1 + 2/2)
    0.65
    """
    every = sorted({(home, c) for home, right, said in answers for c in (right, said) if c})
    number = {c: i for i, c in enumerate(every)}
    sets = sorted({home for home, _ in every})
    of_set = np.array([sets.index(home) for home, _ in every])
    right = np.array([number[home, right] for home, right, _ in answers])
    said = np.array([number.get((home, said), -1) for home, _, said in answers])

    def score(weights: NDArray[np.float64]) -> float:
        """`weights` (n,): how often each item is there."""

        def count(which: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
            return np.bincount(which[where], weights[where], len(every)).astype(np.float64)

        both = count(right, right >= 0) + count(said, said >= 0)  # (classes,)
        each = np.divide(2 * count(right, right == said), both, out=np.zeros(len(every)), where=both > 0)
        some = np.bincount(of_set, both > 0, len(sets))
        return float((np.bincount(of_set, each, len(sets))[some > 0] / some[some > 0]).mean())

    return bootstrap(score, len(answers), groups)
