"""Gisting: one group of comp tokens after the whole context.

Mu et al., NeurIPS 2023, arXiv:2304.08467; the `fixed` compression that Kim et al. 2024 compare with. All context
segments are one; memory: n_comp entries a layer. It is not online: a second boundary is an error.

>>> from context_memory.show import picture
>>> print(picture(Gist(n_comp=1), "ab|c|d"))
  a b c C d
a 1 . . . .
b 1 1 . . .
c 1 1 1 . .
C 1 1 1 1 .
d . . . 1 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from torch import Tensor

from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme, check_n_comp
from context_memory.text import Segment


@dataclass(frozen=True)
class Gist(Scheme):
    n_comp: int = 2
    max_steps: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        check_n_comp(self.n_comp)

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return (k.segment == q.segment) | k.comp

    def capacity(self, step: int) -> int:
        return self.n_comp if step else 0

    def arrange(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        context = [s for s in segments if s.compress and not s.target]
        rest = [s for s in segments if not (s.compress and not s.target)]
        if len(context) < 2:
            return segments

        def flags(name: str) -> tuple[bool, ...]:
            return tuple(chain.from_iterable(getattr(s, name) or (False,) * len(s.ids) for s in context))

        whole = Segment(tuple(chain.from_iterable(s.ids for s in context)), loss=flags("loss"), pins=flags("pins"))
        return [whole, *rest]
