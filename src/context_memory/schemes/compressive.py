"""Pooling of the cache: a segment's keys and values are averaged into `entries` slots, run by run. Nothing is trained for it.

The Compressive Transformer's mean pooling (Rae et al., ICLR 2020, arXiv:1911.05507) as the baseline of Kim et al. 2024, who choose the
rate so that the memory is as large as that of `concat`: `entries` = its n_comp. Keys are averaged after the rotary embedding. A segment
of fewer tokens is kept as it is; pins stay and are not averaged. A LoRA on every token (`model.gate=all`) can be trained with it.
Memory after t segments: at most t * entries a layer.

>>> from context_memory.show import picture
>>> print(picture(Compressive(entries=1), "ab|c|d"))
  a b S c S d
a 1 . . . . .
b 1 1 . . . .
S - - - - - -
c . . 1 1 . .
S - - - - - -
d . . 1 . 1 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme


@dataclass(frozen=True)
class Compressive(Scheme):
    n_comp: int = 0
    entries: int = 2
    """Means that a segment leaves."""
    pools: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_comp:
            raise InputError(f"scheme 'compressive' pools raw tokens and has no comp tokens; leave n_comp at 0, got {self.n_comp}.")
        if self.entries < 1:
            raise InputError(f"entries must be at least 1, got {self.entries}; to keep nothing of a segment use scheme=nothing.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        return [cls(entries=2)]

    @property
    def mixes(self) -> bool:
        return True

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return ((k.segment == q.segment) & ~k.slot) | (k.slot & (k.segment < q.segment))

    def slots(self, step: int, unfolded: int) -> int:
        return min(self.entries, unfolded)

    def capacity(self, step: int) -> int:
        return step * self.entries
