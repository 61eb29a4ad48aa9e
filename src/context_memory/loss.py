"""Losses as sums over labelled rows, in float32, a chunk of rows at a time.

A vocabulary of 49k at 4,000 labels is 800 MB of float32 logits; nothing needs them all at once. Each chunk's gradient with
respect to the hidden states is taken right where its logits are, so neither is the head run twice (as in checkpointing) nor
are logits kept. The head itself is frozen and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as _cross_entropy

Head = Callable[[Tensor], Tensor]
"""(rows, hidden) -> (rows, vocabulary) logits."""
CHUNK_BYTES = 64 << 20
"""Room for the float32 logits of a chunk on a CPU,"""
DEVICE_BYTES = 512 << 20
"""and elsewhere: on an H200, 7,000 rows of 152k words take 23 ms, and 35 in chunks as small as a CPU's."""


def cross_entropy(hidden: Tensor, labels: Tensor, head: Head, vocabulary: int) -> Tensor:
    """Sum over rows of -log p(label); (N, hidden), (N,) -> scalar float32 (float64 stays float64)."""

    def rows(h: Tensor, y: Tensor) -> Tensor:
        return _cross_entropy(_wide(head(h)), y, reduction="sum")

    return _summed(rows, hidden, (labels,), vocabulary)


def distillation(hidden: Tensor, teacher: Tensor, head: Head, vocabulary: int) -> Tensor:
    """Sum over rows of KL(teacher || student), from (N, hidden) states of the same tokens; gradient to the student alone.

    Raises:
        ValueError: the rows do not line up.
    """
    if hidden.shape != teacher.shape:
        raise ValueError(f"student and teacher must have the same labelled tokens, got {len(hidden)} and {len(teacher)} rows.")

    def rows(h: Tensor, t: Tensor) -> Tensor:
        log_p = _wide(head(t)).log_softmax(-1)
        log_q = _wide(head(h)).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum()

    return _summed(rows, hidden, (teacher.detach(),), vocabulary)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _summed(fn: Callable[..., Tensor], hidden: Tensor, others: tuple[Tensor, ...], vocabulary: int) -> Tensor:
    size = max(1, (CHUNK_BYTES if hidden.device.type == "cpu" else DEVICE_BYTES) // (4 * vocabulary))
    return _Chunked.apply(hidden, fn, others, size)


class _Chunked(torch.autograd.Function):
    """sum over chunks of fn(hidden[i:j], *others[i:j]), with the gradient taken in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, fn: Callable[..., Tensor], others: tuple[Tensor, ...], size: int) -> Tensor:
        wants = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wants else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for i in range(0, len(hidden), size):
            with torch.set_grad_enabled(wants):
                part = hidden[i : i + size].detach().requires_grad_(wants)
                value = fn(part, *(o[i : i + size] for o in others))
            if grad is not None:
                (grad[i : i + size],) = torch.autograd.grad(value, part)
            total += value.detach()
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        return (None if ctx.grad is None else ctx.grad * upstream.to(ctx.grad.dtype)), None, None, None
