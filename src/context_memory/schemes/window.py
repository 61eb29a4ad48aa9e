"""A sliding window: a token sees the latest `size` tokens of the text, itself included, and pins.

StreamingLLM is this with `pins=[sink]` (Xiao et al., ICLR 2024, arXiv:2309.17453), which also counts positions anew within
the cache; here they stay those of the text. It forgets at the clock and not at boundaries: while decoding, a token takes the place of
one of a closed segment that went out of reach, so a memory has `size` entries a layer, pins not counted, and as many more as the open
segment is longer than that. Pins that are chosen when a segment ends (`results`) want segments of at most `size` tokens: within a
longer one they are out of reach for a while, which the one pass cannot know.

>>> from context_memory.show import picture
>>> print(picture(Window(size=3), "ab|c|de"))
  a b c d e
a 1 . . . .
b 1 1 . . .
c 1 1 1 . .
d . 1 1 1 .
e . . 1 1 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme


@dataclass(frozen=True)
class Window(Scheme):
    n_comp: int = 0
    size: int = 64
    """Latest tokens that are seen, the token itself among them."""

    def __post_init__(self) -> None:
        if self.n_comp:
            raise InputError(f"scheme 'window' keeps the latest tokens and has no comp tokens; leave n_comp at 0, got {self.n_comp}.")
        if self.size < 2:
            raise InputError(f"size must be at least 2, a token and the one before it, got {self.size}; see also scheme=nothing.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        return [cls(size=7)]

    @property
    def slides(self) -> bool:
        return True

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return q.position - k.position < self.size

    def capacity(self, step: int) -> int:
        return self.size - 1  # the next token is the last one of its window
