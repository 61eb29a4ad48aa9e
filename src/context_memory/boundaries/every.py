"""A segment ends after every `n` tokens: for streams, and for text without lines."""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.boundaries.base import Boundary, Step


@dataclass(frozen=True)
class Every(Boundary):
    """Ends after `n` tokens."""

    n: int = 64
    """Tokens of a segment."""
    max_segment: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"boundary 'every' needs n >= 1 tokens, got n={self.n}.")
        if self.n > self.max_segment:
            raise ValueError(f"boundary 'every' got n={self.n} above max_segment={self.max_segment}; raise max_segment or lower n.")

    def ends(self, step: Step) -> bool:
        return len(step.ids) >= self.n
