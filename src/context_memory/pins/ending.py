"""A segment's last line, if it is short: the label of a demonstration, the last word on a matter.

What a demonstration teaches most is which answers there are and how they are written (Min et al., EMNLP 2022, arXiv:2202.12837); its label
is a few tokens, and a few comp tokens do not spell it.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.pins.base import MARK, Piece, Pin


@dataclass(frozen=True)
class Ending(Pin):
    budget: int = 8
    """Tokens of a segment; a longer line, one that begins the next turn, or the only one of its segment is no label and is not kept."""

    def chooses(self, piece: Piece) -> list[int]:
        text = "".join(piece.pieces)
        end = len(text.rstrip())
        start = text.rfind("\n", 0, end) + 1
        if not start or MARK.search(text, start, end):
            return []
        tokens = piece.covering(start, end)
        return tokens if len(tokens) <= self.budget else []
