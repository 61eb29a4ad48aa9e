"""Memories as values: rows picked out of a memory, memories side by side as one batch, a memory for the stock `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from context_memory.errors import InputError
from context_memory.memory import CLOCKS, Memory
from context_memory.memory_columns import BLANK
from context_memory.plan import Tokens


def pick(memory: Memory, rows: Sequence[int]) -> Memory:
    """Some rows, in this order; shares no storage with `memory`."""
    other = Memory(memory.lm, len(rows))
    which = torch.tensor(list(rows), dtype=torch.long, device=memory.slot.device)
    for name in CLOCKS:
        setattr(other, name, [getattr(memory, name)[r] for r in rows])
    width = max(other.length, default=0)
    other.held = memory.held.map(lambda x: x[which, :width])
    other.slot = memory.slot[which, :width]
    for mine, theirs in zip(memory.layers, other.layers):
        if mine.keys is not None:
            theirs.keys, theirs.values = mine.keys[which, :, :width], mine.values[which, :, :width]
            theirs.is_initialized = True
    merged = bool(other.held.slot.any())  # there may be averages of other rows only
    other.mean = [(k[which], v[which]) for k, v in memory.mean] if merged else []
    return other


def batch(memories: Sequence[Memory]) -> Memory:
    """All rows of all memories; shorter ones are padded, and the padding counts in `nbytes`.

    Raises:
        InputError: none; memories of different models or schemes.
    """
    if not memories or any(m.lm.base is not memories[0].lm.base or m.lm.scheme != memories[0].lm.scheme for m in memories):
        raise InputError(
            "a batch is made of memories of one model under one scheme; give at least one, and write the others again with it."
        )
    whole = Memory(memories[0].lm, sum(m.rows for m in memories))
    width = max(m.tokens for m in memories)
    for name in CLOCKS:
        setattr(whole, name, [x for m in memories for x in getattr(m, name)])

    def wide(x: Tensor, dim: int, value: int = 0) -> Tensor:
        return pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, width - x.shape[dim]), value=value)

    def column(name: str) -> Tensor:
        return torch.cat([wide(getattr(m.held, name)[:, : m.tokens], 1, BLANK.get(name, 0)) for m in memories])

    whole.held = Tokens(**{name: column(name) for name in vars(whole.held)})
    whole.slot = torch.cat([wide(m.slot[:, : m.tokens], 1) for m in memories])
    some = next((m for m in memories if m.layers[0].keys is not None), None)
    for i, layer in enumerate(whole.layers if some is not None else []):
        for name in ("keys", "values"):
            like = getattr(some.layers[i], name)  # type: ignore[union-attr]
            parts = []
            for m in memories:
                states = getattr(m.layers[i], name)
                empty = like.new_zeros(m.rows, like.shape[1], 0, like.shape[3])
                parts.append(wide(empty if states is None else states[:, :, : m.tokens], 2))
            setattr(layer, name, torch.cat(parts))
        layer.is_initialized = True
    for i, pair in enumerate(next((m.mean for m in memories if m.mean), [])):
        both = [m.mean[i] if m.mean else tuple(x.new_zeros(m.rows, *x.shape[1:]) for x in pair) for m in memories]
        whole.mean.append((torch.cat([p[0] for p in both]), torch.cat([p[1] for p in both])))
    return whole


def inputs(memory: Memory, ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of transformers' `generate`: the cache as a copy, a 2-D mask over memory and prompt, positions from the clock.

    `generate` takes the part of `input_ids` that the cache covers as read; there zeros stand for what the memory holds.

    Raises:
        InputError: the memory has other than one row, or the stock `generate` would see another text: it slides no window of ours, gates
            no adapter, and counts a window of the model's own in columns.
    """
    lm = memory.lm
    stays = "the stock generate cannot go on from it; use lm.generate(question, memory=memory)"
    if lm.scheme.slides:
        raise InputError(f"scheme '{lm.scheme.name}' goes on sliding while an answer is written: {stays}.")
    if lm.gate == "all" and lm.peft is not None:
        raise InputError(f"this adapter acts on every token (model.gate=all): {stays}.")
    if lm.family.windowed(lm.base.config):
        raise InputError(f"the model has a sliding window of its own, which comp tokens and pins are exempt from: {stays}.")
    if memory.rows != 1:
        raise InputError(f"a prompt goes on from a memory of one row, this one has {memory.rows}; pick one: memory.pick([0]).")
    cache = DynamicCache()
    for i, layer in enumerate(memory.layers):
        if layer.keys is not None:
            cache.update(layer.keys[:, :, : memory.tokens].clone(), layer.values[:, :, : memory.tokens].clone(), i)
    device, held = memory.slot.device, memory.tokens
    first = memory.clock[0]
    return {
        "input_ids": torch.tensor([[0] * held + list(ids)], device=device),
        "attention_mask": torch.ones(1, held + len(ids), dtype=torch.long, device=device),
        "position_ids": torch.arange(first, first + len(ids), device=device)[None],
        "past_key_values": cache,
    }
