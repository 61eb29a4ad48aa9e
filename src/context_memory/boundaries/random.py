"""The control: a segment ends anywhere. A policy that does not beat it knows nothing about where to cut.

The coin of a token is a checksum of the seed and the segment so far, so the same text is always cut at the same places, offline,
in a stream and in any batch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from context_memory.boundaries.base import Boundary, Step

SIDES = 1 << 32


@dataclass(frozen=True)
class Random(Boundary):
    """Ends after every token with probability 1 / `mean`."""

    mean: float = 24.0
    """Tokens a segment has on average, where `max_segment` does not cut it short."""
    seed: int = 0
    """Of the places."""
    max_segment: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mean >= 1:
            raise ValueError(f"boundary 'random' needs a mean of at least 1 token, got mean={self.mean:g}.")

    def ends(self, step: Step) -> bool:
        coin = zlib.crc32(f"{self.seed} {','.join(map(str, step.ids))}".encode())
        return coin < SIDES / self.mean
