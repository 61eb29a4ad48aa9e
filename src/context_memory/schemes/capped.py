"""Concat up to `cap` groups of comp tokens; then the oldest ones are merged, or dropped.

With `evicted=merged` the latest cap - 1 groups stand side by side and n_comp slots (S) hold the running mean of all older ones: `cap=1`
is `merge`, a cap that is never reached is `concat`. With `evicted=dropped` the oldest group is lost, as in the streams of Kim et al.
2024 (arXiv:2312.03414). Memory: at most cap * n_comp entries a layer, whatever t.

>>> from context_memory.show import picture
>>> print(picture(Capped(n_comp=1, cap=2), "a|b|c|d"))
  a C b C S c C S d
a 1 . . . . . . . .
C 1 1 . . . . . . .
b . 1 1 . . . . . .
C . 1 1 1 . . . . .
S - - - - - - - - -
c . . . 1 1 1 . . .
C . . . 1 1 1 1 . .
S - - - - - - - - -
d . . . . . . 1 1 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme, check_n_comp


@dataclass(frozen=True)
class Capped(Scheme):
    n_comp: int = 2
    cap: int = 4
    """Groups of comp tokens that stay as they are."""
    evicted: str = "merged"
    """What becomes of older ones: `merged` into one group, or `dropped`."""
    recurrent: bool = True
    """Whether a segment sees the memory while it is compressed."""

    def __post_init__(self) -> None:
        check_n_comp(self.n_comp)
        if self.cap < 1:
            raise InputError(f"cap must be at least 1 group of comp tokens, got {self.cap}; to keep nothing use scheme=nothing.")
        if self.evicted not in ("merged", "dropped"):
            raise InputError(f"evicted must be 'merged' or 'dropped', got {self.evicted!r}.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        return [cls(n_comp=2, cap=2), cls(n_comp=1, cap=2, evicted="dropped")]

    @property
    def mixes(self) -> bool:
        return self.evicted == "merged"

    @property
    def delay(self) -> int:
        return self.cap - 1

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        own = (k.segment == q.segment) & ~k.slot
        near = k.comp & (q.segment - k.segment <= (self.delay if self.mixes else self.cap))
        return own | ((near | (k.slot & (k.segment == q.segment - 1))) & (q.reads | self.recurrent))

    def capacity(self, step: int) -> int:
        return min(step, self.cap) * self.n_comp

    def rate(self, step: int) -> float:
        return 1 / (step + 1)
