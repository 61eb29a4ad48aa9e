"""Conditional LoRA on stock PEFT: the adapter acts on gated tokens only, and is computed for them only.

Kim et al. 2024, section 3.2: y = W x + 1[x is a comp token] * (alpha / r) * B A x.

Seam: peft 0.21, `LoraLayer.lora_variant`, the table through which PEFT's own variants (DoRA, ...) replace the vanilla sum. How a gate
gets to the layers of a model is `wiring.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn.functional import linear

MAIN = "default"
"""PEFT's name of the LoRA that an adapter folder is made of, if nothing else is said."""


@dataclass(frozen=True)
class Gate:
    """Which tokens LoRA acts on: flat indices into (b * n), or None for every token (`gate=all`)."""

    index: Tensor | None


@dataclass
class Taken:
    """The rows that were gathered last. One for all layers, so that a pass holds those of one layer and not of all."""

    x: Tensor | None = None
    gathered: Tensor | None = None

    def rows(self, x: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The gated rows of (b, n, hidden) `x` in that dtype. Modules that are given the same x (queries, keys, values) share them."""
        if self.gathered is None or self.x is not x:
            self.x, self.gathered = x, x.flatten(0, -2)[index].to(dtype)
        return self.gathered

    def leave(self) -> None:
        self.x = self.gathered = None


@dataclass
class Seat:
    """Where a decoder layer leaves the gate for its LoRA modules while it runs."""

    taken: Taken
    gate: Gate | None = None

    def leave(self) -> None:
        self.gate = None
        self.taken.leave()


class GatedLora(LoraVariant):
    """LoRA on the gated rows: gather, A, B, add back. No gate: the base layer's result, untouched.

    Args:
        every: on all rows wherever there is a gate, whatever it says.
    """

    def __init__(self, seat: Seat, every: bool = False) -> None:
        self.seat, self.every = seat, every

    def supports_lora_conversion(self) -> bool:
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object) -> Tensor:
        gate = self.seat.gate
        if gate is None:
            return result
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        drop, scaling = module.lora_dropout[active_adapter], module.scaling[active_adapter]
        if self.every or gate.index is None:  # every row: in the base model's dtype, a cast of all rows would cost more than the adapter
            return result + linear(linear(drop(x), a.to(x.dtype)), (b * scaling).to(x.dtype))
        delta = linear(linear(drop(self.seat.taken.rows(x, gate.index, a.dtype)), a), b).to(result.dtype)
        # In place: the base layer's result is nobody else's, and a linear layer's backward does not read it.
        return result.view(-1, result.shape[-1]).index_add_(0, gate.index, delta, alpha=scaling).view_as(result)


def widen(module: nn.Module) -> None:
    """Every LoRA in float32 at least, whatever the base model's dtype is."""
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))


def trainable(module: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
