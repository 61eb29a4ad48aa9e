"""Where a segment ends. A policy is written once, for streaming; the offline cuts are derived from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Step:
    """What a policy may look at after every token: the segment so far, the last token included."""

    ids: Sequence[int]
    """Token ids of the segment so far."""
    text: str
    """The same, as text."""
    piece: str
    """The text that the last token added."""


class Boundary(ABC):
    """A boundary policy. Subclasses are frozen dataclasses whose fields are its settings."""

    plugin: ClassVar[bool] = True
    max_segment: int = 256
    """Tokens after which a segment ends whatever the policy says."""

    @abstractmethod
    def ends(self, step: Step) -> bool:
        """Whether the segment ends with its last token."""

    def fires(self, step: Step) -> bool:
        """`ends`, guarded by `max_segment`."""
        return len(step.ids) >= self.max_segment or self.ends(step)

    def split(self, ids: Sequence[int], piece_of: Callable[[int], str]) -> list[tuple[int, ...]]:
        """Cut `ids` where a streaming run would; the concatenation is `ids` again. `piece_of` gives a token's text."""
        segments: list[tuple[int, ...]] = []
        start, text = 0, ""
        for i, token in enumerate(ids):
            piece = piece_of(token)
            text += piece
            if self.fires(Step(ids[start : i + 1], text, piece)):
                segments.append(tuple(ids[start : i + 1]))
                start, text = i + 1, ""
        if start < len(ids):
            segments.append(tuple(ids[start:]))
        return segments
