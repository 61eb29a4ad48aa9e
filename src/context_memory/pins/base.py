"""Which raw tokens stay in the memory verbatim, beside the comp tokens of their segment."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

NUMBER = re.compile(r"\d(?:[\d,]*\d)?(?:\.\d+)?")


@dataclass(frozen=True)
class Piece:
    """A closed segment, as a pin rule sees it."""

    ids: Sequence[int]
    pieces: Sequence[str]
    """The text that each token added; joined, the text of the segment."""
    first: bool = False
    """Whether the memory starts with this segment."""
    prompt: bool = False
    """Whether this is the question (rather than context or answer)."""

    def covering(self, start: int, end: int) -> list[int]:
        """The tokens that hold the characters start..end of the text."""
        found, at = [], 0
        for i, piece in enumerate(self.pieces):
            if at < end and at + len(piece) > start:
                found.append(i)
            at += len(piece)
        return found

    def numbers(self) -> list[list[int]]:
        """The tokens of every number in the text, in order."""
        return [self.covering(*m.span()) for m in NUMBER.finditer("".join(self.pieces))]


class Pin(ABC):
    """A pin rule. Subclasses are frozen dataclasses; `budget` is the most tokens it keeps of one segment."""

    plugin: ClassVar[bool] = True
    budget: int

    @abstractmethod
    def chooses(self, piece: Piece) -> list[int]:
        """Indices of the tokens to keep, the most important first."""

    def keeps(self, piece: Piece) -> set[int]:
        """`chooses`, within the budget."""
        return set(self.chooses(piece)[: self.budget])


def flags(rules: Sequence[Pin], piece: Piece) -> tuple[bool, ...]:
    """Which tokens of the segment any rule keeps; empty if none."""
    kept = set().union(*(rule.keeps(piece) for rule in rules)) if rules else set()
    return tuple(i in kept for i in range(len(piece.ids))) if kept else ()
