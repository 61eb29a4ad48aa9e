"""How slots are filled: which columns' keys and values they are the weighted sum of, and with what weights.

One pass and a memory ask the same functions: running averages of comp tokens are `Scheme.rate` unrolled, pooled segments are plain
means of raw tokens. Keys are summed after the rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from context_memory.plan import Plan, Tokens
from context_memory.schemes.base import Scheme

Learned = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, values (b, h, groups, n_comp, d), rates (b, groups)) -> (b, h, groups, n_comp) rates."""


@dataclass(frozen=True)
class Mix:
    """Which keys and values the attention function overwrites with a weighted sum of others (merging and pooling schemes).

    target = weight @ source, slot by slot, for keys (after RoPE) and values alike.
    """

    weight: Tensor
    """(b, groups out, groups in), float32 or wider."""
    source: Tensor
    """(b, groups in, n_comp) columns of comp tokens (and, when a memory is continued, of its slots); raw ones one by one."""
    rows: Tensor
    """(N,) batch row of every overwritten column."""
    target: Tensor
    """(N,) the column."""
    picked: Tensor
    """(N,) which (group out, slot), counted flat within its batch row."""
    rate: Tensor | None = None
    """(b, groups in) what `weight` is unrolled from,"""
    learned: Learned | None = None
    """and what moves it, layer by layer."""

    def states(self, states: Tensor) -> Tensor:
        """(b, h, n, d) -> (b, h, groups in, n_comp, d) the sources, in float32 or wider."""
        (b, h, _, d), (_, g, c) = states.shape, self.source.shape
        index = self.source.reshape(b, 1, g * c, 1).expand(b, h, g * c, d)
        return states.gather(2, index).view(b, h, g, c, d).to(torch.promote_types(states.dtype, torch.float32))

    def fill(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """(b, h, n, d) keys and values of a layer, with the slots filled."""
        keys, values = self.states(key), self.states(value)
        weight, rule = self.weight.to(values.dtype), "bts,bhscd->btchd"
        if self.learned is not None and self.rate is not None:
            weight, rule = unroll(self.learned(layer, values, self.rate).transpose(2, 3)), "bhcts,bhscd->btchd"
        return self._put(key, torch.einsum(rule, weight, keys)), self._put(value, torch.einsum(rule, weight, values))

    def _put(self, states: Tensor, summed: Tensor) -> Tensor:
        b, h, _, d = states.shape
        out = states.clone()
        out[self.rows, :, self.target] = summed.to(states.dtype).reshape(b, -1, h, d)[self.rows, self.picked]
        return out


def mix(plan: Plan, scheme: Scheme, learned: Learned | None = None) -> Mix | None:
    """How the slots of a plan are filled in one pass, or None for schemes without slots."""
    if not scheme.mixes or not bool(plan.tokens.slot.any()):
        return None
    if scheme.pools:
        return pooled(plan.tokens, plan.slot, plan.tokens.slot)
    comp, slot, segment, _ = plan.groups.unbind(-1)
    steps = int(segment.max()) + 1
    table = torch.tensor([scheme.rate(s) for s in range(steps)], dtype=torch.float64, device=plan.ids.device)
    rate = table[segment.clamp(min=0)]  # the first of every packed example weighs 1: nothing passes from one to the next
    n = int(plan.slot.max()) + 1  # the plan's number: an adapter for several is trained on plans with fewer than the scheme's
    offset = torch.arange(n, device=plan.ids.device)
    target = slot[:, :, None] + offset
    rows, groups, lanes = ((slot >= 0)[:, :, None].expand_as(target)).nonzero(as_tuple=True)
    source, picked = comp.clamp(min=0)[:, :, None] + offset, (groups - scheme.delay) * n + lanes
    return Mix(unroll(rate), source, rows, target[rows, groups, lanes], picked, rate, learned)


def unroll(rate: Tensor) -> Tensor:
    """(..., steps) -> (..., steps, steps): the weights of what was folded in as number s in the slots of step t."""
    steps = rate.shape[-1]
    fresh = torch.diag_embed(rate)
    rows = [fresh[..., 0, :]]
    for t in range(1, steps):
        rows.append(rows[-1] * (1 - rate[..., t, None]) + fresh[..., t, :])
    return torch.stack(rows, -2)


def pooled(t: Tokens, slot: Tensor, fresh: Tensor) -> Mix:
    """Each fresh slot (b, n) as the mean of its share of its segment's raw tokens, pins left out: as even runs as can be, in order."""
    rows, columns = fresh.nonzero(as_tuple=True)

    def together(which: Tensor) -> Tensor:
        """(N, n) bool: the columns of the same segment of the same example."""
        near = (t.segment[rows] == t.segment[rows, columns][:, None]) & (t.row[rows] == t.row[rows, columns][:, None])
        return which[rows] & near

    raw, slots = together(t.raw & ~t.pin), together(fresh).sum(1, keepdim=True)
    run = (raw.cumsum(1) - 1) * slots // raw.sum(1, keepdim=True)
    share = (raw & (run == slot[rows, columns][:, None])).double()
    place = fresh.cumsum(1)[rows, columns] - 1
    weight = share.new_zeros(len(fresh), int(fresh.sum(1).max()), fresh.shape[1])
    weight[rows, place] = share / share.sum(1, keepdim=True)
    source = torch.arange(fresh.shape[1], device=fresh.device).expand_as(fresh)[..., None]
    return Mix(weight, source, rows, columns, place)
