"""Every number of a step, the last ones first where the budget is short."""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Numbers(Pin):
    budget: int = 16

    def chooses(self, piece: Piece) -> list[int]:
        return [i for tokens in reversed(piece.numbers()) for i in tokens]
