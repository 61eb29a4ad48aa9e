"""The end of a step: its last number with the words right before it, "so Emma has 18". Says whose number it is, verbatim.

A number alone has to be found again by what its step's comp tokens say of it; with its words it is found as in the full text.
Tokens that are blanks alone say nothing, and none of the budget goes to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Conclusions(Pin):
    budget: int = 6

    def chooses(self, piece: Piece) -> list[int]:
        numbers = [] if piece.prompt else piece.numbers()
        return [i for i in range(numbers[-1][-1], -1, -1) if piece.pieces[i].strip()] if numbers else []
