"""Conditional LoRA on stock PEFT: the adapter acts on gated tokens only, and is computed for them only.

Kim et al. 2024, section 3.2: y = W x + 1[x is a comp token] * (alpha / r) * B A x.

Seam: peft 0.21, `LoraLayer.lora_variant`, the table through which PEFT's own variants (DoRA, ...) replace the vanilla sum;
and transformers 5.23, which hands unknown keyword arguments down to the attention of every decoder layer. A hook there reads
`lora_gate`, so that a layer that is run again brings its gate along. (A hook on the layer itself would not do: gradient
checkpointing replays the layer's `forward` without its hooks.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
class Seat:
    """Where a decoder layer leaves the gate for its LoRA modules while it runs."""

    gate: Gate | None = None
    _taken: tuple[Tensor, Tensor] | None = None

    def rows(self, x: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The gated rows of (b, n, hidden) `x` in that dtype. Modules that are given the same x (queries, keys, values) share them."""
        if self._taken is None or self._taken[0] is not x:
            self._taken = x, x.flatten(0, -2)[index].to(dtype)
        return self._taken[1]

    def leave(self) -> None:
        self.gate = self._taken = None


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
        delta = linear(linear(drop(self.seat.rows(x, gate.index, a.dtype)), a), b).to(result.dtype)
        # In place: the base layer's result is nobody else's, and a linear layer's backward does not read it.
        return result.view(-1, result.shape[-1]).index_add_(0, gate.index, delta, alpha=scaling).view_as(result)


@dataclass(frozen=True)
class Socket:
    """A place in the model where a LoRA layer stands."""

    parent: nn.Module
    name: str
    lora: LoraLayer
    adapter_name: str

    def unplug(self) -> None:
        """Put the base layer there, unless another adapter acts beside ours."""
        if self.lora.active_adapters == [self.adapter_name]:
            self.parent._modules[self.name] = self.lora.base_layer

    def plug(self) -> None:
        self.parent._modules[self.name] = self.lora


def install(layers: Iterable[nn.Module], adapter_name: str = MAIN, attention: str = "self_attn", every: bool = False) -> list[Socket]:
    """Make the PEFT LoRA of these decoder layers conditional on the `lora_gate` keyword argument of each call.

    `attention` is the child that gets the keyword arguments; it runs before every other module of its layer that has a LoRA.
    With `every`, LoRA acts on all tokens of a call that has a gate. Returns where the LoRA layers stand.
    """
    sockets: list[Socket] = []
    for layer in layers:
        seat = Seat()
        for parent in layer.modules():
            for name, module in parent.named_children():
                if isinstance(module, LoraLayer) and adapter_name in module.lora_A:
                    module.lora_variant[adapter_name] = GatedLora(seat, every)
                    module.cast_input_dtype_enabled = False  # PEFT would cast every row, gated or not
                    sockets.append(Socket(parent, name, module, adapter_name))
        layer.get_submodule(attention).register_forward_pre_hook(_Sit(seat), with_kwargs=True)
        layer.register_forward_hook(_Rise(seat), always_call=True)
    return sockets


@contextmanager
def unplugged(sockets: Iterable[Socket]) -> Iterator[None]:
    """Run the base layers alone: where no token is gated, calling PEFT's wrappers would cost a step of decoding 7 % (docs/log.md)."""
    try:
        for socket in sockets:
            socket.unplug()
        yield
    finally:
        for socket in sockets:
            socket.plug()


@dataclass(eq=False)
class _Sit:
    """A hook as an object, so that a copy of the model brings its own seat along."""

    seat: Seat

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        gate = kwargs.get("lora_gate")
        assert gate is None or isinstance(gate, Gate)
        self.seat.gate = gate


@dataclass(eq=False)
class _Rise:
    seat: Seat

    def __call__(self, *_: object) -> None:
        self.seat.leave()


def widen(module: nn.Module) -> None:
    """Every LoRA in float32 at least, whatever the base model's dtype is."""
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))


def trainable(module: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
