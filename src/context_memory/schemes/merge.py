"""CCM-merge: n_comp slots hold a running average of all segments' comp keys (after RoPE) and values.

Kim et al., ICLR 2024, arXiv:2312.03414, section 3.1 and Table 16. Memory: n_comp entries a layer, whatever t.
Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t), with a_t = 1/t (`average=mean`); a_t = `decay` after a_1 = 1 (`exponential`); or
a_t = t^p / (1^p + ... + t^p), p = `power`, so that segment j weighs as j^p (`recency`). With `learned=True` a trained parameter moves
a_t, starting from that rule (`rates.py`). In one pass the slots (S) stand behind the comp tokens; the rows of S are never read.

>>> from context_memory.show import picture
>>> print(picture(Merge(n_comp=1), "ab|c|d"))
  a b C S c C S d
a 1 . . . . . . .
b 1 1 . . . . . .
C 1 1 1 . . . . .
S - - - - - - - -
c . . . 1 1 . . .
C . . . 1 1 1 . .
S - - - - - - - -
d . . . . . . 1 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import Tokens
from context_memory.schemes.base import Scheme, check_n_comp


@dataclass(frozen=True)
class Merge(Scheme):
    n_comp: int = 2
    recurrent: bool = True
    """Whether a segment sees the memory while it is compressed."""
    average: str = "mean"
    """`mean` of all segments, `exponential` (the latest weighs `decay`), or `recency` (weights grow as the place to the `power`)."""
    decay: float = 0.5
    """Weight of the latest segment, for `exponential`."""
    power: float = 1.0
    """0 is the mean, for `recency`."""
    learned: bool = False
    """Train how much of each layer's fresh comp tokens enters, from the average as a start."""

    def __post_init__(self) -> None:
        check_n_comp(self.n_comp)
        if self.average not in ("mean", "exponential", "recency"):
            raise InputError(f"average must be 'mean', 'exponential' or 'recency', got {self.average!r}.")
        if not 0 < self.decay <= 1:
            raise InputError(f"decay must be above 0 and at most 1, got {self.decay}.")
        if self.power < 0:
            raise InputError(f"power must be at least 0 (0 is the mean), got {self.power}.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        exponential, recency = cls(n_comp=1, average="exponential", decay=0.3), cls(n_comp=1, average="recency", power=1.5)
        return [cls(n_comp=2), cls(n_comp=1, recurrent=False), exponential, recency, cls(n_comp=2, learned=True)]

    @property
    def mixes(self) -> bool:
        return True

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        own = (k.segment == q.segment) & ~k.slot
        return own | (k.slot & (k.segment == q.segment - 1) & (q.reads | self.recurrent))

    def capacity(self, step: int) -> int:
        return self.n_comp if step else 0

    def rate(self, step: int) -> float:
        if step == 0:
            return 1.0
        if self.average == "recency":
            return 1 / sum((j / (step + 1)) ** self.power for j in range(1, step + 2))
        return 1 / (step + 1) if self.average == "mean" else self.decay
