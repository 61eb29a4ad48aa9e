"""A step's last number: its result. Numbers are what a few comp tokens lose first (docs/papers.md, LightThinker's own analysis)."""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Results(Pin):
    budget: int = 8

    def chooses(self, piece: Piece) -> list[int]:
        numbers = piece.numbers()
        return numbers[-1] if numbers else []
