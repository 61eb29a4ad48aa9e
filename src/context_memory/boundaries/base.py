"""Where a segment ends. A policy is written once, for streaming; the offline cuts are derived from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What a policy may look at after every token: the segment so far, the last token included."""

    ids: Sequence[int]
    """Token ids of the segment so far."""
    text: str
    """The same, as text."""
    piece: str
    """The text that the last token added."""
    score: float | None = None
    """What `Boundary.read` made of the hidden state of the last token; None for policies that need none."""


class Boundary(ABC):
    """A boundary policy. Subclasses are frozen dataclasses whose fields are its settings."""

    plugin: ClassVar[bool] = True
    needs_hidden: ClassVar[bool] = False
    """Whether it looks at the model's hidden state of the token just processed (then `read` says how)."""
    max_segment: int = 256
    """Tokens after which a segment ends whatever the policy says."""
    min_segment: int = 0
    """Tokens before which no segment ends; a field of the policies that have one."""

    def __post_init__(self) -> None:
        if self.max_segment < 1:
            raise ValueError(f"a segment has at least one token, got max_segment={self.max_segment}.")
        if self.min_segment < 0:
            raise ValueError(f"min_segment must be at least 0, got {self.min_segment}.")

    @abstractmethod
    def ends(self, step: Step) -> bool:
        """Whether the segment ends with its last token."""

    def read(self, hidden: Tensor) -> list[float]:
        """A score for each of the (n, hidden) last hidden states; handed to `ends` token by token."""
        raise NotImplementedError(f"boundary '{type(self).__name__.lower()}' reads no hidden states.")

    def check(self, origin: Mapping[str, str]) -> None:
        """Raises UserError if the policy belongs to other weights than hidden states come from (`CompressedLM.origin`)."""
        return None

    def settle(self, tokenizer: Any) -> Boundary:
        """The policy as it is for this tokenizer.

        Raises:
            ValueError: it needs a token that the tokenizer has not.
        """
        return self

    @property
    def mark(self) -> str:
        """An ordinary token that the model itself writes at the end of a segment, and that is no part of the answer; empty for none."""
        return ""

    @property
    def offline(self) -> Boundary:
        """The policy that cuts text which is given and not written by the model: questions, and solutions to learn from."""
        return self

    def fires(self, step: Step) -> bool:
        """`ends`, guarded by `max_segment`."""
        return len(step.ids) >= self.max_segment or self.ends(step)

    def edges(self, ids: Sequence[int], piece_of: Callable[[int], str], scores: Sequence[float] = ()) -> list[int]:
        """How many tokens stand before every place where a streaming run would end a segment. `piece_of` gives a token's text."""
        out: list[int] = []
        start, text = 0, ""
        for i, token in enumerate(ids):
            piece = piece_of(token)
            text += piece
            if self.fires(Step(ids[start : i + 1], text, piece, scores[i] if scores else None)):
                out.append(i + 1)
                start, text = i + 1, ""
        return out

    def split(self, ids: Sequence[int], piece_of: Callable[[int], str], scores: Sequence[float] = ()) -> list[tuple[int, ...]]:
        """`ids` cut at the `edges`; the concatenation is `ids` again."""
        edges = self.edges(ids, piece_of, scores)
        return [tuple(ids[a:b]) for a, b in pairwise([0, *edges, len(ids)]) if a < b]
