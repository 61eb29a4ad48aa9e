"""A training's attention in float32 where a CPU's own backward pass in bfloat16 is slower than that.

Seam: torch 2.13, whose fused attention for CPUs is fast forwards in bfloat16 and slow backwards: 16 rows of 128 tokens, 9 heads of 64, take
6 and 99 ms; with queries, keys and values made float32 first, the same kernel takes 13 and 31 (docs/results.md, "Speed and memory of the
process"). At 192 a whole step gains nothing that shows, and at 1,024 bfloat16 is ahead. Without gradients nothing changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 128
"""Queries a row up to which float32 is surely the faster one (of 192 a whole step gained nothing that could be told from noise)."""


def widened(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(b, heads, q, d), (b, kv heads, n, d) -> the same or, where gradients are taken on a CPU and rows are short, in float32."""
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if not trained or query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[2] > LONGEST:
        return query, key, value
    return query.float(), key.float(), value.float()
