"""Eviction by the norm of the keys: of what is no pin, `size` entries a head stay: the `recent` latest, then those of small keys.

Devoto et al., EMNLP 2024, arXiv:2406.11430: keys of small L2 norm attract attention, so those of large norm are dropped, in every
layer and every key-value head by itself. (The rotary embedding leaves a norm as it is.) Their code can leave layers out,
in its example the first two; here all are held to one size. It happens at every boundary, `boundary=every boundary.n=8`, so the
memory holds at most `size` + 8 entries a layer and pins; the token after a boundary still sees what is dropped there. What is kept
depends on the keys themselves: no mask says it, there is no one pass, and a memory's `held` names pins and counts the rest.

>>> from context_memory.plan import build
>>> text = build([[(0, 0, True, i == 0, i, 0, 0) for i in range(6)]]).tokens  # six raw tokens, the first one a pin
>>> norms = torch.tensor([9.0, 4.0, 2.0, 3.0, 1.0, 8.0])
>>> KeyNorm(size=3, recent=1).choose(norms[None, None, :, None], text, most=4)  # the pin, then 2 and 4 of small norm, and the latest
tensor([[[0, 2, 4, 5]]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from context_memory.errors import InputError
from context_memory.plan import PAD, Tokens
from context_memory.schemes.base import Scheme


@dataclass(frozen=True)
class KeyNorm(Scheme):
    n_comp: int = 0
    size: int = 64
    """Entries that stay, in each head."""
    recent: int = 8
    """Of these, the latest tokens."""
    static: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_comp:
            raise InputError(f"scheme 'key_norm' keeps raw tokens and has no comp tokens; leave n_comp at 0, got {self.n_comp}.")
        if not 0 <= self.recent <= self.size or not self.size:
            raise InputError(f"size must be at least 1 and recent from 0 to size, got size={self.size} and recent={self.recent}.")

    @classmethod
    def variants(cls) -> list[Scheme]:
        return [cls(size=5, recent=2), cls(size=3, recent=0)]

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return (q.index == q.index) & (k.index == k.index)  # all that is held

    def capacity(self, step: int) -> int:
        return self.size

    def kept(self, k: Tokens, step: Tensor, clock: Tensor) -> Tensor:
        """Pins, and as many others as stay; which ones differs from head to head, so the latest are named for them."""
        return k.pin | latest(_others(k), self.size)

    def choose(self, keys: Tensor, k: Tokens, most: int) -> Tensor:
        others = _others(k)[:, None]
        norm = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.promote_types(keys.dtype, torch.float32))
        cost = norm.masked_fill(latest(others, self.recent), -1).masked_fill(~others, torch.inf)
        cheap = cost.argsort(dim=-1, stable=True).argsort(dim=-1) < self.size
        rank = torch.where(k.pin[:, None], 0, torch.where(others & cheap, 1, 2))
        return rank.sort(dim=-1, stable=True).indices[..., :most]


def _others(k: Tokens) -> Tensor:
    return ~k.pin & (k.kind != PAD)


def latest(which: Tensor, n: int) -> Tensor:
    """The last n of the marked columns. Columns stand in the order of the text, in every head."""
    return which & (which.flip(-1).cumsum(-1).flip(-1) <= n)
