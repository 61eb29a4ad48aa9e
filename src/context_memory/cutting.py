"""Whole examples as segments, for any boundary policy and pin rule: what a stream would cut and keep, found without streaming.

Most go by the text alone. One that reads hidden states depends on the memory, and the memory on the earlier segments. Segments and
hidden states are therefore found together: run the text with the segments known so far, read the scores, cut again, until nothing
moves. What is read off a token depends on earlier segments alone, so each round settles at least one more token, and where nothing
moves the segments are those of a stream. A settled token keeps what was read off it: rounded a little differently in another round, a
score right at a threshold would move for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from context_memory.encode import Encoder
from context_memory.model import CompressedLM
from context_memory.plan import layout
from context_memory.text import Example, Segment


def segments(lm: CompressedLM, encoder: Encoder, example: Example, streamed: bool = True) -> list[Segment]:
    """The segments of a whole example.

    Args:
        streamed: with hidden states after what is compressed, as while decoding; else those of the frozen model with its full
            context, which do not change while an adapter is trained.
    """
    if not lm.family.causal:  # a decoder writes its answer in one piece, and learns to write nothing else
        return [s if s.target else replace(s, loss=()) for s in encoder.uncut(example)]
    if not encoder.readers or (encoder.readers == (encoder.boundary,) and example.cuts):
        return encoder.segments(example)
    n, found = len(encoder.answer(example)), encoder.uncut(example)
    if not lm.scheme.hides:
        return found
    encoder.check(lm.origin)
    scores: dict[Any, list[float]] = {}
    settled = 0
    while True:
        fresh = encoder.read(answer_states(lm, found, n, adapter=streamed))
        scores = {reader: [*scores.get(reader, [])[:settled], *values[settled:]] for reader, values in fresh.items()}
        again = encoder.segments(example, scores)
        if again == found or not streamed:
            return again
        found, settled = again, agreed(found, again)


def agreed(before: Sequence[Segment], now: Sequence[Segment]) -> int:
    """Tokens of the answer, from its beginning on, that two ways to cut it ran after the same memory.

    >>> a, b, c = Segment((1, 2), target=True), Segment((3, 4, 5), target=True), Segment((3, 4), target=True)
    >>> agreed([a, b], [a, c]), agreed([a, b], [a, b])
    (4, 5)
    """
    count = 0
    for a, b in zip((s for s in before if s.target), (s for s in now if s.target)):
        count += min(len(a.ids), len(b.ids))
        if a != b:
            break
    return count


def cuts(lm: CompressedLM, encoder: Encoder, example: Example) -> tuple[int, ...]:
    """Where a stream would end segments of the target, as `Example.cuts`."""
    return encoder.offsets(example, edges(segments(lm, encoder, replace(example, cuts=()))))


def edges(whole: Sequence[Segment]) -> list[int]:
    """How many tokens of the answer stand before every boundary."""
    return list(itertools.accumulate(len(s.ids) for s in whole if s.target and s.compress))


@torch.inference_mode()
def answer_states(lm: CompressedLM, whole: Sequence[Segment], n: int, adapter: bool = True) -> Tensor:
    """(n, hidden) last hidden states of the first `n` tokens of the answer; without `adapter`, of the frozen model that sees all."""
    given = sum(len(s.ids) for s in whole if not s.target)
    if not adapter:
        whole = [Segment(tuple(i for s in whole for i in s.ids), compress=False, target=True)]
    training = lm.training
    lm.eval()
    try:
        plan = layout(whole, lm.scheme, lm.positions).to(lm.device)
        hidden = lm.hidden(plan, adapter=adapter)[plan.tokens.raw]
    finally:
        lm.train(training)
    return hidden[given : given + n]
