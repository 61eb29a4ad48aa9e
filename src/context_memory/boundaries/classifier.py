"""A small learned head on the model's hidden state says whether the segment ends with the token just processed.

The hidden state is there anyway, so nothing is run twice; the head is a two-layer perceptron (`head.py`), trained by
`ccm boundary train`, kept beside the adapter as `classifier.safetensors`, and refused for other weights. It cuts what the model writes; a
question that is to be compressed too is cut at its sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from context_memory.boundaries.base import Boundary, Step
from context_memory.boundaries.sentence import Sentence
from context_memory.errors import InputError
from context_memory.head import Headed

FILE = "classifier.safetensors"


@dataclass(frozen=True)
class Classifier(Headed, Boundary):
    """Ends where the head's probability reaches `tau`."""

    tau: float = 0.5
    """Above 0 and below 1: lower cuts more often."""
    path: str = ""
    """The head's file, or the adapter folder that holds it; empty: the adapter that is used."""
    min_segment: int = 2
    """Tokens before which no segment ends."""
    max_segment: int = 256
    file_name: ClassVar[str] = FILE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau < 1:
            raise ValueError(f"boundary.tau must be above 0 and below 1, got {self.tau:g}; 0.5 is where both are as likely.")

    @property
    def offline(self) -> Boundary:
        return Sentence(max_segment=self.max_segment)

    def ends(self, step: Step) -> bool:
        if step.score is None:
            raise InputError("boundary 'classifier' goes by hidden states and was asked about a text without any; use it with a model.")
        return len(step.ids) >= self.min_segment and step.score >= self.tau
