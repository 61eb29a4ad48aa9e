"""CCM-concat: keep every segment's comp keys and values side by side.

Kim et al., ICLR 2024, arXiv:2312.03414, section 3.1. Memory after t segments: t * n_comp entries a layer. With
`recurrent=False` a segment does not see the memory while it is compressed (the authors' choice for independent
demonstrations, their `concat`; with recurrence, their `concat_recur`).

>>> from context_memory.show import picture
>>> print(picture(Concat(n_comp=1), "ab|c|d"))
  a b C c C d
a 1 . . . . .
b 1 1 . . . .
C 1 1 1 . . .
c . . 1 1 . .
C . . 1 1 1 .
d . . 1 . 1 1

With `window`, the latest raw tokens of segments that are compressed already stay in view for a while, as in a stream:

>>> print(picture(Concat(n_comp=1, window=1), "ab|c|d"))
  a b C c C d
a 1 . . . . .
b 1 1 . . . .
C 1 1 1 . . .
c . 1 1 1 . .
C . . 1 1 1 .
d . . 1 1 1 1

With `cache`, the window is as long as so many entries leave room for beside the comp tokens that are held, and never shorter than
`window`: what is held does not grow while the window gives way to the memory.

>>> print(picture(Concat(n_comp=1, cache=3), "ab|c|d|ef"))
  a b C c C d C e f
a 1 . . . . . . . .
b 1 1 . . . . . . .
C 1 1 1 . . . . . .
c 1 1 1 1 . . . . .
C . 1 1 1 1 . . . .
d . . 1 1 1 1 . . .
C . . 1 . 1 1 1 . .
e . . 1 . 1 . 1 1 .
f . . 1 . 1 . 1 1 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme, check_n_comp


@dataclass(frozen=True)
class Concat(Scheme):
    n_comp: int = 2
    recurrent: bool = True
    """Whether a segment sees the memory while it is compressed."""
    window: int = 0
    """Raw tokens before the running one, of segments that are compressed already, that it still sees."""
    cache: int = 0
    """Entries that comp tokens and window share, pins not counted: the window is what the comp tokens leave, at least `window`."""
    lag: int = 0
    """Tokens of the next segments that do not look at a segment's comp tokens yet, its text being in the window still. While decoding, comp
    tokens are then run every `lag` steps for all rows that ended a segment, instead of whenever one did."""

    def __post_init__(self) -> None:
        check_n_comp(self.n_comp)
        if self.window < 0:
            raise InputError(f"window must be 0 or more tokens, got {self.window}.")
        if self.cache < 0 or 0 < self.cache <= self.window:
            raise InputError(f"cache must be more entries than window={self.window}, or 0 for a window of one length, got {self.cache}.")
        if not 0 <= self.lag <= self.window:
            raise InputError(f"lag must be between 0 and window={self.window} tokens, seen in place of comp tokens; got {self.lag}.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        windows = [cls(n_comp=1, window=5), cls(n_comp=2, window=1, cache=9), cls(n_comp=2, window=4, cache=12, lag=3)]
        return [cls(n_comp=2), cls(n_comp=1, recurrent=False), *windows]

    @property
    def slides(self) -> bool:
        return max(self.window, self.cache) > 0

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        away, earlier = q.position - k.position, k.comp
        if self.lag:  # comp tokens look back less far: when they are run, the window may have moved on by so much
            earlier = earlier & (q.comp | (away >= self.lag))
        if self.slides:
            window = (self.cache - q.segment * self.n_comp).clamp(min=self.window)
            earlier = earlier | (k.raw & (away <= window - self.lag * q.comp))
        return (k.segment == q.segment) | (earlier & (k.segment < q.segment) & (q.reads | self.recurrent))

    def kept(self, k: Tokens, step: Tensor, clock: Tensor) -> Tensor:
        """Comp tokens that are not looked at yet, and what was said while they were put off, stay as well."""
        return super().kept(k, step, clock) | k.comp | (k.segment > step)

    def capacity(self, step: int) -> int:
        return max(self.cache, step * self.n_comp + self.window)
