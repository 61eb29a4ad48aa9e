"""Every number of a step, the last ones first where the budget is short.

Most numbers of a solution are said more than once: in the question, as a step's result, where a later step takes it up. With `once` a
number is kept where it is said first, and what it costs to keep it again is free for those that are new.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Numbers(Pin):
    budget: int = 16
    once: bool = False
    """Leave out what already stands verbatim in the question or an earlier step, or later in this one."""
    whole: bool = True
    """Leave out a number for which there is no room any more. If not, its first digits are kept, which say another number."""

    def chooses(self, piece: Piece) -> list[int]:
        chosen: list[int] = []
        held = set(piece.held)
        for value, tokens in reversed(piece.figures()):
            fits = not self.whole or len({*chosen, *tokens}) <= self.room(piece)
            if fits and not (self.once and value in held):
                chosen += tokens
            held.add(value)
        return chosen
