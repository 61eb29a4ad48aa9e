"""Which raw tokens stay in the memory verbatim, beside the comp tokens of their segment."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = re.compile(r"\d(?:[\d,]*\d)?(?:\.\d+)?")
MARK = re.compile(r"<\S+>|\[/?[A-Z_]+\]")
"""A token of its own that marks a turn: `<|im_end|>`, `<start_of_turn>`, `[INST]`."""


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
    held: frozenset[str] = frozenset()
    """Numbers that stand verbatim before it, in the question or in an earlier segment of the answer."""
    scores: Sequence[float] = ()
    """What the rule made of the hidden state of each token (`Pin.read`); empty for rules that need none, and for what is given."""

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
        return [tokens for _, tokens in self.figures()]

    def figures(self) -> list[tuple[str, list[int]]]:
        """Every number in the text, without commas, and its tokens, in order."""
        return [(m[0].replace(",", ""), self.covering(*m.span())) for m in NUMBER.finditer("".join(self.pieces))]


class Pin(ABC):
    """A pin rule. Subclasses are frozen dataclasses; `budget` is the most tokens it keeps of one segment."""

    plugin: ClassVar[bool] = True
    needs_hidden: ClassVar[bool] = False
    """Whether it looks at the model's hidden state of every token (then `read` says how)."""
    budget: int
    """The most tokens of a segment that it keeps."""

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"pins.{type(self).__name__.lower()}.budget must be at least 0, got {self.budget}.")

    @abstractmethod
    def chooses(self, piece: Piece) -> list[int]:
        """Indices of the tokens to keep, the most important first."""

    def read(self, hidden: Tensor) -> list[float]:
        """A score for each of the (n, hidden) last hidden states."""
        raise NotImplementedError(f"pins '{type(self).__name__.lower()}' reads no hidden states.")

    def check(self, origin: Mapping[str, str]) -> None:
        """Raises UserError if the rule belongs to other weights than hidden states come from (`CompressedLM.origin`)."""
        return None

    def settle(self, tokenizer: Any) -> Pin:
        """The rule as it is for this tokenizer."""
        return self

    def room(self, piece: Piece) -> int:
        """How many tokens it may keep of this segment."""
        return self.budget

    def keeps(self, piece: Piece) -> set[int]:
        """`chooses`, within its room."""
        return set(self.chooses(piece)[: self.room(piece)])


def flags(rules: Sequence[Pin], piece: Piece, scores: Mapping[Any, Sequence[float]]) -> tuple[bool, ...]:
    """Which tokens of the segment any rule keeps, each with its own scores; empty if none."""
    kept = set().union(*(rule.keeps(replace(piece, scores=scores.get(rule, ()))) for rule in rules)) if rules else set()
    return tuple(i in kept for i in range(len(piece.ids))) if kept else ()
