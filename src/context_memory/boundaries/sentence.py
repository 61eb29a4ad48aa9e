"""A segment ends with its sentence or line: for prose, and for a question that is compressed too.

A stop right behind a digit may be a decimal point, and what follows is not known yet, so it ends nothing; such a sentence
goes on to the next stop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from context_memory.boundaries.base import Boundary, Step


@dataclass(frozen=True)
class Sentence(Boundary):
    """Ends at a token that holds a newline, or that ends with `.`, `!` or `?` (closing quotes and brackets may follow)."""

    max_segment: int = 256

    STOP: ClassVar[re.Pattern[str]] = re.compile(r"(?:[^\d\W]|[^\w.])[.!?]+[\"'\u201d\u2019)\]]*\s*$|\d[!?]\s*$")

    def ends(self, step: Step) -> bool:
        if not step.text.strip():
            return False
        return "\n" in step.piece or bool(step.piece.strip() and self.STOP.search(step.text))
