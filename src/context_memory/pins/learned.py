"""The tokens that a small learned head calls worth keeping: what later steps would gain most from seeing.

The head reads the hidden state of each token of the answer as it is written (`head.py`); `ccm pins train` teaches it from the
model's own gradients (`saliency.py`), with no list of what matters. Kept beside the adapter as `pins.safetensors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from context_memory.head import Headed
from context_memory.pins.base import Piece, Pin

FILE = "pins.safetensors"


@dataclass(frozen=True)
class Learned(Headed, Pin):
    budget: int = 4
    """Tokens of a segment."""
    floor: float = 0.0
    """Probability below which a token is not kept even where the budget has room."""
    path: str = ""
    """The head's file, or the adapter folder that holds it; empty: the adapter that is used."""
    file_name: ClassVar[str] = FILE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor < 1:
            raise ValueError(f"pins.learned.floor must be at least 0 and below 1, got {self.floor:g}.")

    def chooses(self, piece: Piece) -> list[int]:
        """The highest first; nothing of a question or a context, whose hidden states are not read."""
        order = sorted(range(len(piece.scores)), key=lambda i: (-piece.scores[i], i))
        return [i for i in order if piece.scores[i] >= self.floor]
