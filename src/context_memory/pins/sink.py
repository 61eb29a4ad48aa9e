"""The attention sink: the first tokens of the text, on which attention rests when it needs nothing.

Xiao et al., ICLR 2024, arXiv:2309.17453; `--sink` of Kim et al. 2024, who keep the first token.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin


@dataclass(frozen=True)
class Sink(Pin):
    budget: int = 1

    def chooses(self, piece: Piece) -> list[int]:
        return list(range(len(piece.ids))) if piece.first else []
