"""Grouped-query heads at the speed that the device has.

Seam: transformers 5.23, `TRANSFORMERS_SDPA_FORCE_GQA`, read at every call of its sdpa function, which under a mask and for more than one
query copies keys and values to every query head; torch 2.13, whose CPU kernel for grouped heads is slow for few queries (docs/log.md,
2026-11-25), and whose fast CUDA kernels take none under a mask. So while decoding the heads of a group are made positions, on a CPU and on
a GPU, and torch is asked itself, for heads that are no longer grouped; of longer texts the CPU's kernel groups the heads, and other
devices get the copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"
"""transformers' own switch: sdpa takes grouped heads under a mask as well."""
FEW = 16
"""Queries a row up to which heads are regrouped (on a CPU, 64 rows of 350 entries, bfloat16: 20 ms instead of 35). With 64 queries it gains
nothing, with 200 it loses."""

SPECIAL = ("softcap", "position_bias", "s_aux", "cache")
"""What attention may be asked for besides: transformers' function knows what to do, or refuses."""


@contextmanager
def grouped(query: Tensor) -> Iterator[None]:
    """(b, heads, q, d) on a CPU: keys and values are not copied to every query head, which transformers does under a mask for the sake of
    CUDA's kernels. The same bits, 15 times faster with 64 rows of 350 entries."""
    if query.device.type != "cpu" or GROUPED in os.environ:
        yield
        return
    os.environ[GROUPED] = "1"
    try:
        yield
    finally:
        os.environ.pop(GROUPED, None)


def few(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None, **more: object
) -> Tensor | None:
    """Attention of a few queries, the heads of a group as if they were positions: the CPU's kernel for grouped heads is slow for few, up to
    14 times for one in bfloat16, and for CUDA's every step would copy the whole cache to all heads.

    (b, heads, q, d), keys and values (b, kv heads, n, d), mask (b, 1, q, n) or None -> (b, q, heads, d), as from transformers' function;
    None where that one is to be asked.
    """
    heads, n = query.shape[1:3]
    group = heads // key.shape[1]
    if query.device.type not in ("cpu", "cuda") or group == 1 or n > FEW or os.environ.get(GROUPED, "1") != "1":
        return None
    if any(more.get(name) is not None for name in SPECIAL):
        return None
    if mask is None:
        if n > 1 or query.device.type != "cpu":
            return None
        mask = query.new_ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    regrouped, mask = query.unflatten(1, (-1, group)).flatten(2, 3), mask.repeat(1, 1, group, 1)
    out = functional.scaled_dot_product_attention(regrouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.unflatten(2, (group, n)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # (b, kv heads, group * q, d) -> (b, q, heads, d)
