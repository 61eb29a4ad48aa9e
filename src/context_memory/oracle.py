"""Where compressing costs least, measured with the adapter itself: how much less likely the rest of a solution becomes.

No teacher is asked. For every place at which a policy would let a segment end, the solution is run with that boundary alone; the
rise of the negative log-likelihood of what follows is what the boundary costs. As many of the cheapest are taken as give segments of a
wanted mean length, none longer than `longest` (a shortest path). Costs are measured one boundary at a time: that they add up is an
approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from context_memory.encode import Encoder, Keeping
from context_memory.errors import InputError
from context_memory.loss import cross_entropy
from context_memory.model import CompressedLM
from context_memory.plan import IGNORE, layout, stack
from context_memory.text import Example, Segment


@dataclass(frozen=True)
class Oracle:
    """How to choose."""

    length: float = 24.0
    """Mean tokens a segment that is aimed at."""
    longest: int = 256
    """Most tokens of a segment, where the places allow it."""
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.length < 1 or self.longest < self.length:
            raise InputError(f"the oracle needs 1 <= length <= longest, got {self.length:g} and {self.longest}.")

    def cuts(self, lm: CompressedLM, encoder: Encoder, example: Example) -> tuple[int, ...]:
        """The chosen places, as `Example.cuts`; `encoder.boundary` says which there are to choose from.

        Raises:
            InputError: a scheme that compresses nothing.
        """
        if not lm.scheme.hides or not lm.scheme.n_comp:
            raise InputError(
                f"the oracle measures what compressing costs, and scheme {lm.scheme.name} compresses nothing; give a compression adapter."
            )
        n = len(encoder.answer(example))
        places = [e for e in encoder.edges(replace(example, cuts=())) if e < n]
        wanted = min(len(places), max(1, round(n / self.length) - 1))
        if not places:
            return ()
        costs = rises(lm, encoder, example, places, self.batch_size)
        return encoder.offsets(example, cheapest(places, costs, wanted, n, self.longest))


@torch.inference_mode()
def rises(lm: CompressedLM, encoder: Encoder, example: Example, places: Sequence[int], batch_size: int = 16) -> list[float]:
    """Nats by which the negative log-likelihood of the answer rises with one boundary, behind that many tokens, for each place."""
    lm.family.must_be_causal("the oracle of boundaries")
    whole = encoder.uncut(example)
    *prompt, answer = whole
    variants = [whole]
    for place in places:
        head, tail = answer.ids[:place], answer.ids[place:]
        closed = Segment(head, loss=(True,) * len(head), pins=Keeping(encoder, prompt).pin(head), target=True)
        variants.append([*prompt, closed, Segment(tail, loss=(True,) * len(tail), compress=False, target=True)])
    sums: list[float] = []
    for start in range(0, len(variants), batch_size):
        plan = stack([layout(v, lm.scheme, lm.positions) for v in variants[start : start + batch_size]]).to(lm.device)
        hidden, vocabulary = lm.hidden(plan), int(lm.base.config.vocab_size)
        sums += [float(_nll(lm, h, labels, vocabulary)) for h, labels in zip(hidden, plan.labels)]
    return [s - sums[0] for s in sums[1:]]


def _nll(lm: CompressedLM, hidden: Tensor, labels: Tensor, vocabulary: int) -> Tensor:
    where = labels != IGNORE
    return cross_entropy(hidden[where], labels[where], lm.logits, vocabulary)


def cheapest(places: Sequence[int], costs: Sequence[float], wanted: int, n: int, longest: int) -> list[int]:
    """The `wanted` places (more, if segments would be longer than `longest`) of the least total cost, in order.

    A place that the others do not reach within `longest` tokens is reached all the same: the text has nothing nearer.

    >>> cheapest([2, 4, 6, 8], [0.1, 3.0, 0.2, 0.3], 2, 10, 6)
    [2, 6]
    >>> cheapest([2, 4, 6, 8], [0.1, 3.0, 0.2, 0.3], 2, 10, 4)
    [2, 6]
    >>> cheapest([2, 4, 6, 8], [0.1, 3.0, 0.2, 0.3], 1, 10, 6)
    [6]
    """
    stops = [0, *places, n]
    last = len(stops) - 1
    price = [0.0, *costs, 0.0]

    def reaches(a: int, b: int) -> bool:
        return stops[b] - stops[a] <= longest or b == a + 1

    # best[k][b]: least cost of a path to stop b with k boundaries on its way
    for most in range(wanted, len(places) + 1):
        best = [[math.inf] * (last + 1) for _ in range(most + 2)]
        back: dict[tuple[int, int], int] = {}
        best[0][0] = 0.0
        for k in range(most + 1):
            for a in range(last):
                if best[k][a] == math.inf:
                    continue
                for b in range(a + 1, last + 1):
                    if reaches(a, b) and (cost := best[k][a] + price[b]) < best[k + 1][b]:
                        best[k + 1][b], back[k + 1, b] = cost, a
        if best[most + 1][last] < math.inf:
            path, at = [], last
            for k in range(most + 1, 0, -1):
                at = back[k, at]
                path.append(stops[at])
            return sorted(path)[1:]
    return list(places)
