"""The model itself says where a segment ends, by writing an ordinary token that it has no other use for.

Stage 1 teaches it: in the solutions that a task adapter learns from, the token stands wherever the `teacher` policy (or an
annotator) ends a segment. It is no comp token: it is predicted, sampled and fed as any other, belongs to the segment that it ends, and
is left out of the answer's text. It costs a forward pass a segment.

>>> Model(token="<e>").split(range(4), "1+1=2 <e> so_2 <e>".split().__getitem__)
[(0, 1), (2, 3)]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from context_memory import plugins
from context_memory.boundaries.base import Boundary, Step

USUAL = ("<|reserved_special_token_0|>", "<|fim_pad|>", "<repo_name>", "<unused0>", "<|extra_0|>", "<|placeholder1|>")
"""Tokens of well-known vocabularies that nothing uses in prose, mathematics and chat."""


@dataclass(frozen=True)
class Model(Boundary):
    """Ends at the token `token`."""

    token: str = ""
    """A token of the vocabulary; empty: the first that is there of some that are reserved in well-known ones."""
    teacher: str = "rules"
    """The policy that says where the token stands in solutions without marks of their own."""
    max_segment: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher == "model" or plugins.find("boundaries", self.teacher).needs_hidden:  # type: ignore[attr-defined]
            raise ValueError(f"boundary 'model' needs a teacher that goes by the text, such as rules or newline; got '{self.teacher}'.")

    @property
    def mark(self) -> str:
        return self.token

    @property
    def offline(self) -> Boundary:
        found: Boundary = plugins.make("boundaries", self.teacher)  # type: ignore[assignment]
        return replace(found, max_segment=min(found.max_segment, self.max_segment - 1))  # type: ignore[type-var]

    def settle(self, tokenizer: Any) -> Boundary:
        words = tokenizer.get_vocab()
        wanted = (self.token,) if self.token else USUAL
        if found := next((t for t in wanted if t in words and t != tokenizer.eos_token), None):
            return replace(self, token=found)
        spare = [t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token]
        raise ValueError(
            f"boundary 'model' needs one token of the vocabulary that nothing else uses; {', '.join(map(repr, wanted))} "
            f"is none here. Name one, in quotes: \"boundary.token='<|...|>'\"; special tokens here: {', '.join(spare[:12]) or 'none'}."
        )

    def ends(self, step: Step) -> bool:
        return bool(self.token) and step.piece == self.token
