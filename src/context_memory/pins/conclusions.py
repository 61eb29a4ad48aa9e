"""The end of a step: its last number with the words of its clause, ", so Emma has 18". Says whose number it is, verbatim.

A number alone has to be found again by what its step's comp tokens say of it; with its words it is found as in the full text.
Blanks, and words that only join, tell nothing: none of the budget goes to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin

CLAUSE = tuple(",;:.!?=\n")
"""What a clause begins behind."""


@dataclass(frozen=True)
class Conclusions(Pin):
    budget: int = 6
    skip: str = "so thus then and the a an"
    """Words that are passed over."""

    def chooses(self, piece: Piece) -> list[int]:
        numbers = piece.numbers()
        if not numbers:
            return []
        chosen, idle = list(reversed(numbers[-1])), {"", *self.skip.split()}
        for i in range(numbers[-1][0] - 1, -1, -1):
            word = piece.pieces[i].strip(" ")
            if word.endswith(CLAUSE):
                break
            if word.lower() not in idle:
                chosen.append(i)
        return chosen
