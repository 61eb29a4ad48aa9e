"""Conditional LoRA on stock PEFT: the adapter acts on gated tokens only, and is computed for them only.

Kim et al. 2024, section 3.2: y = W x + 1[x is a comp token] * (alpha / r) * B A x.

Seam: peft 0.21, `LoraLayer.lora_variant`, the table through which PEFT's own variants (DoRA, ...) replace the vanilla sum;
and transformers 5.23, which hands unknown keyword arguments down to the attention of every decoder layer. A hook there reads
`lora_gate`, so that a layer that is run again brings its gate along. (A hook on the layer itself would not do: gradient
checkpointing replays the layer's `forward` without its hooks.) Without gradients neither hooks nor PEFT's wrappers are needed:
`Wiring.unplugged` takes them out while a pass runs (torch 2.13, a module's `_forward_hooks` and `_forward_pre_hooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


class Bare(nn.Module):
    """A LoRA layer without PEFT's own way through it: the base layer's result and, on the gated rows, what the adapter adds."""

    lora: LoraLayer

    def __init__(self, lora: LoraLayer, adapter_name: str) -> None:
        super().__init__()
        object.__setattr__(self, "lora", lora)  # not a submodule, or its weights would be there twice
        self.adapter_name = adapter_name

    def forward(self, x: Tensor) -> Tensor:
        return self.lora.lora_variant[self.adapter_name].forward(self.lora, self.adapter_name, x, self.lora.base_layer(x))


@dataclass(frozen=True)
class Socket:
    """A place in the model where a LoRA layer stands."""

    parent: nn.Module
    name: str
    lora: LoraLayer
    bare: Bare

    def put(self, module: nn.Module) -> None:
        self.parent._modules[self.name] = module


@dataclass(frozen=True)
class Hook:
    """A hook of ours on a module, which can be taken off and put back (behind others on that module, if there are any)."""

    hooks: dict[int, Callable[..., Any]]
    """The module's."""
    key: int

    def off(self) -> Callable[..., Any]:
        return self.hooks.pop(self.key)

    def on(self, hook: Callable[..., Any]) -> None:
        self.hooks[self.key] = hook


@dataclass(frozen=True)
class Wiring:
    """What `install` has put into a model."""

    adapter_name: str
    sockets: list[Socket]
    seats: list[Seat]
    hooks: list[Hook]

    @property
    def alone(self) -> bool:
        """Whether our adapter acts, in every layer, and no other one beside it in any."""
        ours = (self.adapter_name, [self.adapter_name])  # PEFT has a name or a list of names
        layers = [socket.lora for socket in self.sockets]
        return bool(layers) and all(x.active_adapter in ours and not (x.disable_adapters or x.merged) for x in layers)

    @contextmanager
    def unplugged(self, gate: Gate | None) -> Iterator[None]:
        """Run without our hooks and PEFT's wrappers, which would slow decoding down (docs/log.md): the base layers alone or, with a gate,
        the same sum as theirs. For a pass without gradients (a layer that is run again would not find its gate), of an adapter `alone`."""
        taken: list[tuple[Hook, Callable[..., Any]]] = []
        try:
            for hook in self.hooks:
                taken.append((hook, hook.off()))
            for seat in self.seats if gate is not None else ():
                seat.gate = gate
            for socket in self.sockets:
                socket.put(socket.lora.base_layer if gate is None else socket.bare)
            yield
        finally:
            for socket in self.sockets:
                socket.put(socket.lora)
            for seat in self.seats if gate is not None else ():
                seat.leave()
            for hook, was in taken:
                hook.on(was)


def install(layers: Iterable[nn.Module], adapter_name: str = MAIN, attention: str = "self_attn", every: bool = False) -> Wiring:
    """Make the PEFT LoRA of these decoder layers conditional on the `lora_gate` keyword argument of each call.

    `attention` is the child that gets the keyword arguments; it runs before every other module of its layer that has a LoRA.
    With `every`, LoRA acts on all tokens of a call that has a gate.
    """
    wiring, taken = Wiring(adapter_name, [], [], []), Taken()
    for layer in layers:
        seat = Seat(taken)
        wiring.seats.append(seat)
        for parent in layer.modules():
            for name, module in parent.named_children():
                if isinstance(module, LoraLayer) and adapter_name in module.lora_A:
                    module.lora_variant[adapter_name] = GatedLora(seat, every)
                    module.cast_input_dtype_enabled = False  # PEFT would cast every row, gated or not
                    wiring.sockets.append(Socket(parent, name, module, Bare(module, adapter_name)))
        block = layer.get_submodule(attention)
        sit = block.register_forward_pre_hook(_Sit(seat), with_kwargs=True)
        rise = layer.register_forward_hook(_Rise(seat), always_call=True)
        wiring.hooks.extend([Hook(block._forward_pre_hooks, sit.id), Hook(layer._forward_hooks, rise.id)])
    return wiring


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
