"""A memory whose entries move: a key is stored once, as it was made, and turned to where it stands now when it is read.

The rotary embedding turns each pair of a key's numbers by an angle that grows with the position. Turning it on by the difference of two
angles is exact, whatever scaling the cosines and sines carry: both are the model's own, and one is divided by the other. It is done
in float32 from what was stored, so that an entry that moves a thousand times is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from context_memory.memory import Memory
from context_memory.plan import Plan, Tokens

if TYPE_CHECKING:
    from context_memory.model import CompressedLM

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, (b, n, rotated size)."""


class MovingMemory(Memory):
    """A memory of one row. `held.position` is where a key was made, `now` where it stands; whoever frees or reorders must `move`."""

    def __init__(self, lm: CompressedLM) -> None:
        super().__init__(lm)
        self.now = self.held.position
        """(1, entries)"""
        self._turns: dict[str | None, Angles] = {}
        self.kinds: Sequence[str | None] = getattr(lm.base.config, "layer_types", None) or [None] * lm.n_layers
        """The type of every layer, for models whose types turn keys differently."""

    def move(self, now: Tensor, clock: int) -> None:
        """Where every entry stands from here on, (1, entries), and the position of the next token."""
        self.now, self.clock = now, [clock]

    def seen(self, used: int) -> Tokens:
        return replace(super().seen(used), position=self.now)

    def advance(self, plan: Plan, clock: Sequence[int], slack: int = 0, slide: bool = False) -> Tensor:
        """As `Memory.advance`, but for `slide`: columns stay in the order of the text."""
        here = self.held.position[:, : self.length[0]]
        fresh = plan.tokens.position.to(here.device)
        self._turns = {}
        if bool((here != self.now).any()):
            was, now = torch.cat([here, fresh], 1), torch.cat([self.now, fresh], 1)
            angles = self.lm.family.angles
            self._turns = {k: between(angles(self.lm.base, was, k), angles(self.lm.base, now, k)) for k in set(self.kinds)}
        self.now = torch.cat([self.now, fresh], 1)
        return super().advance(plan, clock, slack)

    def fold(self, rows: Sequence[int], exact: bool = True) -> None:
        """As `Memory.fold`; a running average of keys is turned to where the fresh ones were made: keys are averaged at one place."""
        slot, fresh = self.held.slot[0], self.held.segment[0] == self.step[0]
        was, now = (self.held.position[:, slot & x] for x in (~fresh, fresh))
        if self.mean and not torch.equal(was, now):
            for i, (keys, values) in enumerate(self.mean):
                by = between(*(self.lm.family.angles(self.lm.base, x, self.kinds[i]) for x in (was, now)))
                self.mean[i] = turned(keys, by), values
        super().fold(rows, exact)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `Memory.update`; the keys that come back are turned copies."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        by = self._turns.get(self.kinds[layer_idx])
        return (keys if by is None else turned(keys, by)), values


def between(was: Angles, now: Angles) -> Angles:
    """The turn that leads from one angle to another: now / was, as complex numbers."""
    (c, s), (cos, sin) = was, now
    size = c * c + s * s
    return (cos * c + sin * s) / size, (sin * c - cos * s) / size


def turned(keys: Tensor, by: Angles) -> Tensor:
    """(b, h, n, d) keys, turned in float32 or wider; numbers beyond the rotated size stay as they are."""
    cos, sin = (x[:, None] for x in by)
    size = cos.shape[-1]
    wide = keys[..., :size].to(cos.dtype)
    first, second = wide.chunk(2, -1)
    out = (wide * cos + torch.cat([-second, first], -1) * sin).to(keys.dtype)
    return out if size == keys.shape[-1] else torch.cat([out, keys[..., size:]], -1)
