"""A gate's way to every LoRA layer of a model: hooks while gradients are taken, and nothing of ours or PEFT's in between where none are.

Seams: peft 0.21, `get_peft_model`, which puts LoRA layers in; and transformers 5.23, which hands unknown keyword arguments down to the
attention of every decoder layer. A hook there reads `lora_gate`, so that a layer that is run again brings its gate along. (A hook on the
layer itself would not do: gradient checkpointing replays the layer's `forward` without its hooks.) Without gradients neither hooks nor
PEFT's wrappers are needed: `Wiring.unplugged` takes them out while a pass runs (torch 2.13, a module's `_forward_hooks` and
`_forward_pre_hooks`). Passes of several threads wait for one another meanwhile; a call of the stock model from another thread does not,
and must not come at the same time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from context_memory.errors import InputError
from context_memory.gate import MAIN, Gate, GatedLora, Seat, Taken, widen

_ONE_PASS = threading.RLock()
"""Held while modules of a model are taken out. One for all models: a lock of their own could not be copied with them."""


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
        with _ONE_PASS:
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


def check(base: object) -> None:
    """Raises InputError if a model is not the bare one of transformers."""
    if isinstance(base, PeftModel):
        raise InputError("got a PeftModel; give the model itself, with its adapter merged: base.merge_and_unload().")


def attach(base: nn.Module, lora: LoraConfig, layers: Iterable[nn.Module], attention: str) -> tuple[PeftModel, Wiring]:
    """Put a LoRA into a model, conditional in every layer, in float32 at least. If that fails, the model is as it was.

    Raises:
        InputError: the model has LoRA layers already; LoRA outside of its layers, where no gate comes; one with a sum of its own (DoRA).
    """
    if any(isinstance(m, LoraLayer) for m in base.modules()):
        raise InputError(
            "the model carries LoRA layers already, of PEFT or of another CompressedLM, and would lose them; merge them first "
            "(merge_and_unload()) or load the model anew."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 reads an old name of its own
        peft = get_peft_model(base, lora, autocast_adapter_dtype=False)
    try:
        own = [name for name, m in base.named_modules() if isinstance(m, LoraLayer) and MAIN in m.lora_variant]
        if own:
            raise InputError(f"the LoRA of '{own[0]}' is of a kind that computes a sum of its own (DoRA or the like); use a plain one.")
        wiring = install(layers, attention=attention)
        inside = {id(socket.lora) for socket in wiring.sockets}
        stray = [name for name, m in base.named_modules() if isinstance(m, LoraLayer) and id(m) not in inside]
        if stray:
            raise InputError(
                f"LoRA on '{stray[0]}' would act on every text, since no gate comes there; target modules of the layers alone."
            )
    except BaseException:
        peft.unload()
        raise
    widen(peft)
    return peft, wiring


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
