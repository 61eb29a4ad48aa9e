"""Pictures of a mask, for people and for doctests."""

from __future__ import annotations

from context_memory.plan import COMP, SLOT, Plan, layout
from context_memory.schemes.base import Scheme
from context_memory.text import Segment


def picture(scheme: Scheme, text: str, *, prompt_last: bool = True) -> str:
    """The mask of `text`, whose segments are divided by `|`; the last one is read and not compressed.

    Lower-case letters are raw tokens, `C` comp tokens, `S` slots; 1 = the row attends to the column, - = never read.
    """
    parts = text.split("|")
    segments = [Segment(tuple(ord(c) for c in p), compress=i < len(parts) - 1 or not prompt_last) for i, p in enumerate(parts)]
    return draw(layout(segments, scheme), scheme)


def draw(plan: Plan, scheme: Scheme) -> str:
    """The mask of the first row of a plan; ids are drawn as characters."""
    kinds, ids = plan.tokens.kind[0].tolist(), plan.ids[0].tolist()
    names = ["C" if k == COMP else "S" if k == SLOT else chr(i) for k, i in zip(kinds, ids)]
    mask = plan.mask(scheme)[0].tolist()
    rows = ["- " * len(names) if k == SLOT else "".join("1 " if x else ". " for x in row) for k, row in zip(kinds, mask)]
    return "\n".join(["  " + " ".join(names), *(f"{name} {row.rstrip()}" for name, row in zip(names, rows))])
