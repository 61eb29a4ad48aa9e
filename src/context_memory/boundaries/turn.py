"""A segment is a turn: the context comes cut already, and an answer is never cut."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from context_memory.boundaries.base import Boundary, Step


@dataclass(frozen=True)
class Turn(Boundary):
    """Never ends a segment by itself, however long the turn."""

    max_segment: int = sys.maxsize

    def ends(self, step: Step) -> bool:
        return False
