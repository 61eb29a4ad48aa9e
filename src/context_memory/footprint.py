"""What a memory would weigh if the decode loop wrote a given text: two schemes compared at equal output length.

No model is run: who outlives a boundary is read off the scheme, as the memory itself reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from context_memory.encode import Encoder
from context_memory.plan import PAD, Plan, visible
from context_memory.schemes.base import Scheme
from context_memory.text import Segment


def peak_if_said(plan: Plan, scheme: Scheme, given: int) -> int:
    """Most entries a layer if the decode loop were to say this plan (b = 1) but its first `given` raw tokens, which do not count.

    The loop holds a closed segment together with its comp tokens and the token after it, for one step; so does this. With `Scheme.lag`
    the loop runs comp tokens later than is reckoned here, and may hold an entry or two more or less.
    """
    t = plan.tokens
    said = t.raw & (t.raw.cumsum(1) > given)
    counted = said | ~t.raw if scheme.static else said | ~t.pin  # as `Decoder._count_prompt` does
    alive = torch.zeros_like(said)
    peak = 0
    for step in range(int(t.segment.max()) + 1):
        here, after = t.segment == step, t.raw & (t.segment > step)
        first = after & (after.cumsum(1) == 1) & said
        alive |= here & t.raw
        fold = here & ~t.raw
        if bool((said & here).any()):
            fold = (fold | first) if bool(first.any()) else torch.zeros_like(here)
            if scheme.slides:  # what is fed alone stands where a token went out of view
                last = fold if fold.sum() == 1 else here & t.raw
                alive &= ~scheme.left_behind(t, torch.tensor([[step]]), t.position[last].max()[None, None])
            peak = max(peak, int((counted & (alive | fold)).sum()))
        else:
            first = torch.zeros_like(here)  # the prompt is folded before the answer begins
        alive |= fold
        clock = t.position[after][:1].sum() + first.sum()
        now = replace(t, kind=torch.where(alive, t.kind, PAD), pin=t.pin & (t.segment <= step))
        alive &= scheme.kept(now, torch.tensor([[step]]), clock[None, None])
    return peak


def peak_when_answered(plan: Plan, scheme: Scheme, given: int) -> int:
    """Most entries a layer that a token of the answer finds (b = 1), itself and the prompt included: what is left of the first `given` raw
    tokens and of the answer so far. Of the answer alone, where it is cut into segments itself, see `peak_if_said`."""
    t = plan.tokens
    rank = t.raw.cumsum(1)
    said = (t.raw & (rank > min(given, int(rank.max()) - 1)))[0]  # an answer of no token is its end, after the prompt's last one
    return int(visible(scheme, t.map(lambda x: x[:, said, None]), t.map(lambda x: x[:, None])).sum(-1).max())


def as_fed(segments: Sequence[Segment], encoder: Encoder) -> list[Segment]:
    """The segments as a decode loop feeds them: the token that ends an answer is sampled and never fed."""
    *rest, last = segments
    if last.ids and last.ids[-1] in encoder.stops:
        last = replace(last, ids=last.ids[:-1], loss=last.loss[:-1], pins=last.pins[:-1])
    if last.ids or not rest:
        return [*rest, last]
    return [*rest[:-1], replace(rest[-1], compress=rest[-1].compress and not rest[-1].target)]
