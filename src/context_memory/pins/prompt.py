"""The question stays as it is; only what is said or reasoned after it is compressed."""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Prompt(Pin):
    budget: int = 1_000_000

    def chooses(self, piece: Piece) -> list[int]:
        return list(range(len(piece.ids))) if piece.prompt else []
