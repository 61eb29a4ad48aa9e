"""Merging: how slots follow from the slots held and fresh comp tokens, within a pass and in the buffers (paper, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from context_memory.plan import COMP, SLOT, Mix, Plan

if TYPE_CHECKING:
    from context_memory.memory import Memory


def mix(memory: Memory, plan: Plan, used: int) -> Mix | None:
    """How the slots that are being run follow from the slots held and the fresh comp tokens."""
    if not memory.lm.scheme.mixes or not bool(plan.tokens.slot.any()):
        return None
    n = memory.lm.scheme.n_comp
    held = memory.held.map(lambda x: x[:, :used])
    slot, big = memory.slot[:, :used], used + n

    def columns(where: Tensor) -> Tensor:
        return torch.where(where, slot, big).sort(dim=1, stable=True).indices[:, :n]

    fresh = held.index >= 0
    source = torch.stack([columns(held.slot & ~fresh), columns(held.comp & fresh)], 1)
    target = columns(held.slot & fresh)
    folds = plan.tokens.slot.any(1)
    rate = torch.tensor([memory.lm.scheme.rate(s) for s in memory.step], dtype=torch.float64, device=slot.device)
    rows = folds.nonzero()[:, 0].repeat_interleave(n)
    lanes = torch.arange(n, device=slot.device).repeat(len(rows) // n)
    return Mix(torch.stack([1 - rate, rate], -1)[:, None], source, rows, target[rows, lanes], lanes)


def average(memory: Memory, which: Tensor, rates: list[float]) -> None:
    """Update the float32 running averages of these rows and store them in their fresh slot columns."""
    n = memory.lm.scheme.n_comp
    kind, segment = memory.held.kind[which], memory.held.segment[which]
    step = torch.tensor([memory.step[int(r)] for r in which], device=which.device)[:, None]

    def columns(k: int) -> Tensor:
        where = (kind == k) & (segment == step)
        return torch.where(where, memory.slot[which], n).sort(dim=1, stable=True).indices[:, :n]

    comp, slot = columns(COMP), columns(SLOT)
    rate = torch.tensor(rates, dtype=torch.float64, device=which.device)[:, None, None, None]
    for i, layer in enumerate(memory.layers):
        if i == len(memory.mean):
            wide = torch.promote_types(layer.keys.dtype, torch.float32)
            keys, values = (x.new_zeros(memory.rows, x.shape[1], n, x.shape[3], dtype=wide) for x in (layer.keys, layer.values))
            memory.mean.append((keys, values))
        for mean, buffer in zip(memory.mean[i], (layer.keys, layer.values)):
            fresh = buffer[which[:, None], :, comp].transpose(1, 2)
            new = ((1 - rate) * mean[which] + rate * fresh).to(mean.dtype)
            mean[which] = new
            buffer[which[:, None], :, slot] = new.transpose(1, 2).to(buffer.dtype)
