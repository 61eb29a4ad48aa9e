"""A segment's rarest words: the names, places and things that a few comp tokens lose first.

A tokenizer's vocabulary is in order of frequency (merges as they were learnt), so by Zipf's law a token says about the logarithm of its
id; a word of several tokens says their sum. No model is asked, so questions and contexts are read as well as answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log

from context_memory.pins.base import MARK, Piece, Pin

WORD = re.compile(r"(?<!\\)(?<![^\W\d_])[^\W\d_]+")
"""Letters; a command of LaTeX (`\\frac`) is none."""


@dataclass(frozen=True)
class Rare(Pin):
    budget: int = 4
    """Tokens of a segment; a word that no longer fits is passed over."""
    question: int | None = None
    """Tokens of a segment of the question, where that is compressed: what is asked is said there and nowhere else. Not given: `budget`."""
    skip: str = ""
    """Words that are rare elsewhere and say nothing here, with blanks between them, such as `calculate therefore`."""

    def room(self, piece: Piece) -> int:
        return self.question if piece.prompt and self.question is not None else self.budget

    def chooses(self, piece: Piece) -> list[int]:
        """Of several turns in a segment the last one's words come first; names of roles are nobody's words."""
        marks = [i for i, text in enumerate(piece.pieces) if MARK.fullmatch(text)]
        found: list[tuple[int, float, list[int]]] = []
        skipped = self.skip.lower().split()
        for match in WORD.finditer("".join(piece.pieces)):
            if match[0].lower() in skipped:
                continue
            tokens = piece.covering(*match.span())
            role = tokens[0] - 1 in marks and piece.pieces[tokens[0]][0].isalpha()
            if not role and not set(tokens) & set(marks):
                turn = sum(i < tokens[0] for i in marks)
                found.append((-turn, -sum(log(1 + piece.ids[i]) for i in tokens), tokens))
        chosen: list[int] = []
        for _, _, tokens in sorted(found):
            new = [i for i in tokens if i not in chosen]
            if len(chosen) + len(new) <= self.room(piece):
                chosen += new
        return chosen
