"""The adapter without PEFT's way through it: the same sum, and nothing of the model is changed afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from context_memory.model import CompressedLM
from context_memory.plan import Plan, layout, stack
from context_memory.schemes.concat import Concat
from context_memory.testing import tiny_lm
from context_memory.text import Segment
from context_memory.wiring import Bare

FAMILIES = ["llama", "gemma3_text", "phi3"]


def plan_of(lm: CompressedLM, compress: bool = True) -> Plan:
    segments = [Segment((5, 6, 7), compress=compress), Segment((8, 9), compress=compress), Segment((3, 4), compress=False)]
    return stack([layout(segments, lm.scheme, lm.positions)])


def wired(lm: CompressedLM) -> tuple[list[nn.Module], list[int]]:
    """What stands in the model's places, and how many hooks each module has."""
    modules = list(lm.base.modules())
    return modules, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gate", ["comp", "all"])
def test_the_same_with_and_without_peft(family: str, gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(family, Concat(n_comp=2), gate=gate)
    plan, calls, forward = plan_of(lm), [], Bare.forward

    def counted(self: Bare, x: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, x)

    monkeypatch.setattr(Bare, "forward", counted)
    before = wired(lm)
    through = lm.hidden(plan).detach()
    assert not calls, "gradients go through PEFT"
    with torch.no_grad():
        without, frozen = lm.hidden(plan), lm.hidden(plan, adapter=False)
    assert calls, "without gradients its wrappers are left out"
    assert torch.equal(through, without)
    assert not torch.allclose(frozen, without), "the adapter does something here"
    assert wired(lm) == before
    assert lm._wiring is not None
    (taken,) = {id(seat.taken): seat.taken for seat in lm._wiring.seats}.values()  # the rows of one layer, not of all, are held
    assert taken.x is None and taken.gathered is None and all(seat.gate is None for seat in lm._wiring.seats)


def test_all_is_put_back_after_an_error() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    plan, before = plan_of(lm), wired(lm)

    def break_off(*_: Any) -> None:
        raise RuntimeError("in the middle of a layer")

    hook = lm.base.model.layers[1].mlp.register_forward_pre_hook(break_off)
    with torch.no_grad(), pytest.raises(RuntimeError, match="middle"):
        lm.hidden(plan)
    hook.remove()
    assert wired(lm) == before
    loss = lm.hidden(plan).square().sum()  # and gradients find the adapter again
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in lm.named_parameters() if "lora_A" in n)


def test_an_adapter_beside_ours_acts_on() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    plan = plan_of(lm)
    with torch.no_grad():
        alone = lm.hidden(plan)
    assert lm.peft is not None and lm._wiring is not None and lm._wiring.alone
    lm.peft.add_adapter("beside", LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lm.peft.base_model.set_adapter(["default", "beside"])
    lm.to(torch.float64)
    assert not lm._wiring.alone
    with torch.no_grad():
        both = lm.hidden(plan)
    assert not torch.allclose(alone, both)


def test_peft_can_switch_it_off() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    plan = plan_of(lm)
    assert lm.peft is not None
    with torch.no_grad(), lm.peft.disable_adapter():
        off = lm.hidden(plan)
    with torch.no_grad():
        assert torch.equal(off, lm.hidden(plan, adapter=False))
