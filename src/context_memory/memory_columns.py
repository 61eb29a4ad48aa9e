"""The columns of a memory: what stands in them, which of them stay when a segment closes, and storage that is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from context_memory.plan import PAD, Plan, Tokens

if TYPE_CHECKING:
    from context_memory.memory import Memory

SLACK = 16
"""Columns by which a growing buffer is enlarged while decoding, so that not every token copies it."""
BLANK = {"kind": PAD, "row": -1, "index": -1}
"""What stands in the bookkeeping of an unused column; 0 otherwise."""


def note(memory: Memory, at: Any, plan: Plan | None, source: Any = ()) -> None:
    """Say what stands in these columns: tokens of a plan, or (None) nothing."""
    for name in (*vars(memory.held), "slot"):
        target = memory.slot if name == "slot" else getattr(memory.held, name)
        if plan is None:
            target[at] = target.new_full((), BLANK.get(name, 0))
        else:
            target[at] = (plan.slot if name == "slot" else getattr(plan.tokens, name))[source]


def free(memory: Memory, which: Tensor, keep: Tensor, exact: bool = True) -> None:
    """Keep the marked columns of these rows, (rows, columns) bool, in their order, and give back the storage of all others."""
    scheme, held = memory.lm.scheme, memory.held.map(lambda x: x[which])
    counts = keep.sum(1)
    most = int(counts.max())
    rank = torch.where(keep, 0 if scheme.static else (~held.pin).long(), 2)  # kept columns first, in their order
    order = rank.sort(dim=1, stable=True).indices[:, :most]
    empty = torch.arange(most, device=order.device) >= counts[:, None]
    for name in (*vars(memory.held), "slot"):
        target, own = (memory.slot, memory.slot[which]) if name == "slot" else (getattr(memory.held, name), getattr(held, name))
        blank = BLANK.get(name, 0)
        moved = own.gather(1, order).masked_fill(empty, blank)
        target[which] = target.new_full((), blank)
        target[which, :most] = moved
    for layer in memory.layers if memory.layers[0].keys is not None else []:
        if scheme.static:
            for buffer in (layer.keys, layer.values):
                buffer[which, :, :most] = buffer[which[:, None], :, order].transpose(1, 2)
            continue
        columns = scheme.choose(layer.keys[which], held, most)[..., None]
        for buffer in (layer.keys, layer.values):
            buffer[which, :, :most] = buffer[which].gather(2, columns.expand(-1, -1, -1, buffer.shape[3]))
    for r, count in zip(which.tolist(), counts.tolist()):
        memory.length[r] = count
    need, have = max(memory.length), memory.slot.shape[1]
    if (exact and have > need) or have - need > 2 * SLACK:
        resize(memory, need)


def resize(memory: Memory, width: int) -> None:
    """Reallocate every buffer with this many columns: what is cut off is really freed."""
    have = memory.slot.shape[1]
    if width > have:
        grow = (0, width - have)
        memory.held = Tokens(**{name: pad(x, grow, value=BLANK.get(name, 0)) for name, x in vars(memory.held).items()})
        memory.slot = pad(memory.slot, grow)
        return  # key and value buffers follow when they are next written
    memory.held = memory.held.map(lambda x: x[:, :width].clone())
    memory.slot = memory.slot[:, :width].clone()
    for layer in memory.layers:
        if layer.keys is not None:
            layer.keys, layer.values = layer.keys[:, :, :width].clone(), layer.values[:, :, :width].clone()
