"""A segment ends with its line: one step of a chain of thought, one turn of a transcript.

The token's text is looked at, not its id: vocabularies have `"\\n"`, `".\\n\\n"` and `"\\n\\n\\n"` as single tokens, and all of
them end a line. A line that is nothing but white space belongs to what follows it; there is nothing in it to compress.
"""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.boundaries.base import Boundary, Step


@dataclass(frozen=True)
class Newline(Boundary):
    """Ends at a token that holds a newline."""

    max_segment: int = 256

    def ends(self, step: Step) -> bool:
        return "\n" in step.piece and bool(step.text.strip())
