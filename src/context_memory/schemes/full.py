"""No compression: every token sees every earlier one. The upper bound of every table.

Memory: all raw tokens. There are no boundaries and no pins: this is the stock model.

>>> from context_memory.show import picture
>>> print(picture(Full(), "ab|c|d"))
  a b c d
a 1 . . .
b 1 1 . .
c 1 1 1 .
d 1 1 1 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme
from context_memory.text import Segment


@dataclass(frozen=True)
class Full(Scheme):
    n_comp: int = 0

    def __post_init__(self) -> None:
        if self.n_comp:
            raise InputError(f"scheme 'full' compresses nothing and has no comp tokens; leave n_comp at 0, got {self.n_comp}.")

    @property
    def hides(self) -> bool:
        return False

    def arrange(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        return [replace(s, compress=False, pins=()) for s in segments]

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return (k.segment == k.segment) & (q.segment == q.segment)

    def capacity(self, step: int) -> int:
        raise NotImplementedError("scheme 'full' keeps every token: its size is the length of the text.")
