"""Gisting-online: every segment is compressed by itself, and later text reads all of it.

The baseline of Kim et al. 2024 (arXiv:2312.03414, Tables 23 to 25): an adapter of Gisting (`scheme=gist`), which has learnt to compress
one context at once, compresses segment after segment, none of which sees the memory. So it is evaluated with such an adapter,
`ccm evaluate --adapter GIST scheme=gist_online`; trained on several segments it would be `concat` with `recurrent=False`, which has
the same mask. Memory after t segments: t * n_comp entries a layer.

>>> from context_memory.show import picture
>>> print(picture(GistOnline(n_comp=1), "ab|c|d"))
  a b C c C d
a 1 . . . . .
b 1 1 . . . .
C 1 1 1 . . .
c . . . 1 . .
C . . . 1 1 .
d . . 1 . 1 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme, check_n_comp


@dataclass(frozen=True)
class GistOnline(Scheme):
    n_comp: int = 2
    recurrent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_n_comp(self.n_comp)

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return (k.segment == q.segment) | (k.comp & q.reads)

    def capacity(self, step: int) -> int:
        return step * self.n_comp
