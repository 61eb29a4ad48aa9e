"""Forget every segment at its boundary. The lower bound of every table: only pins survive.

Memory: pins.

>>> from context_memory.show import picture
>>> print(picture(Nothing(), "ab|c|d"))
  a b c d
a 1 . . .
b 1 1 . .
c . . 1 .
d . . . 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme


@dataclass(frozen=True)
class Nothing(Scheme):
    n_comp: int = 0

    def __post_init__(self) -> None:
        if self.n_comp:
            raise InputError(f"scheme 'nothing' keeps nothing and has no comp tokens; leave n_comp at 0, got {self.n_comp}.")

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return k.segment == q.segment

    def capacity(self, step: int) -> int:
        return 0
