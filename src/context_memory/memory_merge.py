"""Merging: how slots follow from what is held and what is fresh, within a pass and in the buffers (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from context_memory.mixing import Mix, pooled, unroll
from context_memory.plan import COMP, SLOT, Plan

if TYPE_CHECKING:
    from context_memory.memory import Memory


def unfolded(memory: Memory) -> list[int]:
    """Row by row, the tokens of the open segment that a boundary would fold: pins do not count."""
    held = memory.held
    now = torch.tensor(memory.step, device=held.kind.device)[:, None]
    return (held.raw & ~held.pin & (held.segment == now)).sum(1).tolist()


def mix(memory: Memory, plan: Plan, used: int) -> Mix | None:
    """How the slots that are being run follow from what the memory holds, fresh tokens included."""
    scheme = memory.lm.scheme
    if not scheme.mixes or not bool(plan.tokens.slot.any()):
        return None
    held = memory.held.map(lambda x: x[:, :used])
    slot, fresh = memory.slot[:, :used], held.index >= 0
    if scheme.pools:
        return pooled(held, slot, held.slot & fresh)
    n, big = scheme.n_comp, used + scheme.n_comp

    def columns(where: Tensor) -> Tensor:
        return torch.where(where, slot, big).sort(dim=1, stable=True).indices[:, :n]

    due = torch.tensor(memory.step, device=slot.device)[:, None] - scheme.delay
    source = torch.stack([columns(held.slot & ~fresh), columns(held.comp & (held.segment == due))], 1)
    target = columns(held.slot & fresh)
    rates = [[1.0, scheme.rate(max(s - scheme.delay, 0))] for s in memory.step]  # what is held already, then what joins it
    rate = torch.tensor(rates, dtype=torch.float64, device=slot.device)
    rows = plan.tokens.slot.any(1).nonzero()[:, 0].repeat_interleave(n)
    lanes = torch.arange(n, device=slot.device).repeat(len(rows) // n)
    return Mix(unroll(rate), source, rows, target[rows, lanes], n + lanes, rate, memory.lm.comp.rate)


def fold(memory: Memory, rows: Sequence[int]) -> None:
    """Fill the slots of the segment that these rows close, in the buffers."""
    scheme = memory.lm.scheme
    ready = [r for r in rows if memory.step[r] >= scheme.delay]
    if not ready:
        return
    which = torch.tensor(ready, device=memory.slot.device)
    step = torch.tensor([memory.step[r] for r in ready], device=which.device)[:, None]
    if scheme.pools:
        _pool(memory, which, step)
    else:
        _average(memory, which, step, [scheme.rate(memory.step[r] - scheme.delay) for r in ready])


def _pool(memory: Memory, which: Tensor, step: Tensor) -> None:
    held = memory.held.map(lambda x: x[which])
    fresh = held.slot & (held.segment == step)
    if not bool(fresh.any()):
        return
    means = pooled(held, memory.slot[which], fresh)
    for i, layer in enumerate(memory.layers):
        layer.keys[which], layer.values[which] = means.fill(layer.keys[which], layer.values[which], i)


def _average(memory: Memory, which: Tensor, step: Tensor, rates: list[float]) -> None:
    """Update the float32 running averages of these rows and store them in their fresh slot columns."""
    scheme = memory.lm.scheme
    n = scheme.n_comp
    kind, segment = memory.held.kind[which], memory.held.segment[which]

    def columns(k: int, at: Tensor) -> Tensor:
        where = (kind == k) & (segment == at)
        return torch.where(where, memory.slot[which], n).sort(dim=1, stable=True).indices[:, :n]

    comp, slot = columns(COMP, step - scheme.delay), columns(SLOT, step)
    told = torch.tensor(rates, dtype=torch.float64, device=which.device)[:, None]
    for i, layer in enumerate(memory.layers):
        if i == len(memory.mean):
            wide = torch.promote_types(layer.keys.dtype, torch.float32)
            keys, values = (x.new_zeros(memory.rows, x.shape[1], n, x.shape[3], dtype=wide) for x in (layer.keys, layer.values))
            memory.mean.append((keys, values))
        fresh = [x[which[:, None], :, comp].transpose(1, 2) for x in (layer.keys, layer.values)]
        rate = told[:, :, None, None]
        if memory.lm.comp.rate is not None:
            values = fresh[1].to(memory.mean[i][1].dtype)[:, :, None]
            rate = memory.lm.comp.rate(i, values, told)[:, :, 0, :, None]
        for mean, buffer, new in zip(memory.mean[i], (layer.keys, layer.values), fresh):
            mean[which] = ((1 - rate) * mean[which] + rate * new).to(mean.dtype)
            buffer[which[:, None], :, slot] = mean[which].transpose(1, 2).to(buffer.dtype)
