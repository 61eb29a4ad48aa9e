"""The same questions with less in memory: what does the next segment of context still add?

A matched cohort: every item is asked at every depth, so that along a curve only the memory changes. (In the original's dialogue
results each depth has its own conversations, those that are long enough.) Depth t is the last t segments of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from context_memory.errors import UserError
from context_memory.text import Example

SIGN = "@"
"""Between an item's id and its depth."""


def at_depths(examples: Sequence[Example], depths: Sequence[int]) -> list[Example]:
    """Every example whose context is long enough for all depths, at each of them.

    Raises:
        UserError: a negative depth, or no example that is long enough.
    """
    if min(depths) < 0 or len(set(depths)) != len(depths):
        raise UserError(f"evaluation.depths are different numbers of segments, 0 or more, got {list(depths)}.")
    longest = max(depths)
    enough = [e for e in examples if len(e.context) >= longest]
    if not enough:
        have = max((len(e.context) for e in examples), default=0)
        raise UserError(f"no example has a context of {longest} segments, as evaluation.depths asks for; the longest has {have}.")
    return [at_depth(e, t) for t in sorted(depths) for e in enough]


def at_depth(example: Example, t: int) -> Example:
    """The example with the last t segments of its context."""
    n = len(example.context) - t
    name = f"{example.id}{SIGN}{t}"
    return replace(example, context=example.context[n:], learn=example.learn[n:], id=name)


def depth_of(id: str) -> int | None:
    """The depth that `at_depths` wrote into an id; None for an item of its own length.

    >>> depth_of("icl/banking/3@16"), depth_of("icl/banking/3")
    (16, None)
    """
    _, sign, t = id.rpartition(SIGN)
    return int(t) if sign and t.isdigit() else None
