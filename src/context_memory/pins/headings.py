"""Where the answer is: the number that a line begins with, "Problem 3:", "### Step 2.", "(4)".

An answer that has lost count begins the same step again, or leaves one out, and nothing that the steps themselves kept can mend it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from context_memory.pins.base import Piece, Pin

HEADING = re.compile(r"^[\s#>*_(]*((?:[^\W\d_]+ )?\d+(?:\.\d+)*[.:)])(?!\d)", re.MULTILINE)
"""A word or none, a number (2.1 is one), and what closes it; marks before them are not kept."""


@dataclass(frozen=True)
class Headings(Pin):
    budget: int = 6

    def chooses(self, piece: Piece) -> list[int]:
        found = HEADING.finditer("".join(piece.pieces))
        return list(dict.fromkeys(i for match in found for i in piece.covering(*match.span(1))))
