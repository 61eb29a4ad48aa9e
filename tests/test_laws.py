"""The laws of the method on every scheme and every family, found by folder, in float64. Each has a control that must fail.

One pass == step by step; an idle adapter changes nothing; padding, batch mates and packing change nothing; a forgotten token
is forgotten; gradient checkpointing changes nothing. (`test_memory.py` has the laws about bytes.)
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import CheckpointError
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import reference
from context_memory import attention
from context_memory.plan import Plan, layout, pack, stack
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment
from context_memory.wiring import Bare

torch.set_num_threads(1)
EXACT = 1e-10
PINNED = [
    Segment((5, 9, 3), pins=(True, False, False)), Segment((7,)), Segment((1, 2, 8, 4), pins=(False, False, True, False)),
    Segment((6, 6, 2), compress=False, target=True),
]  # fmt: skip
EMPTY = [Segment((5, 9, 3)), Segment(()), Segment(()), Segment((7,)), Segment((6, 6, 2), compress=False, target=True)]
"""Three boundaries in a row."""
STEPS = [
    Segment((1, 2, 8, 4, 9, 9, 7, 5)), Segment((6, 2), compress=False, target=True), Segment((3, 1, 30), target=True),
    Segment((8,), target=True, pins=(True,)), Segment((), target=True), Segment((4, 4, 8), compress=False, target=True),
]  # fmt: skip
"""A chain of thought: the prompt shares its segment with the first step; the last step is not closed."""
TEXTS = {"pinned": PINNED, "empty": EMPTY, "steps": STEPS}


def both_sizes() -> list[tuple[str, Scheme]]:
    """Every variant of every scheme with one and with two comp tokens, on every family."""
    found = {}
    for family, scheme in tiny_lms():
        for n in (1, 2) if scheme.n_comp else (0,):
            found[f"{family}-{replace(scheme, n_comp=n)}"] = (family, replace(scheme, n_comp=n))
    return list(found.values())


def text(scheme: Scheme, segments: list[Segment]) -> list[Segment]:
    """The same for schemes that compress once: the first segment alone is context."""
    return segments if scheme.max_steps is None else [segments[0], segments[-1]]


def whole(lm, segments: list[Segment]) -> Tensor:  # type: ignore[no-untyped-def]
    """(raw tokens, vocabulary) logits in one pass."""
    plan = layout(segments, lm.scheme, lm.positions)
    return lm(plan)[plan.tokens.raw]


def by_steps(lm, segments: list[Segment]) -> Tensor:  # type: ignore[no-untyped-def]
    """The same, segment by segment on a memory."""
    memory = lm.memory()
    return torch.cat([lm.logits(memory.run([[s]])[0, : len(s.ids)]) for s in segments])


# ---- one pass == step by step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize(("family", "scheme"), both_sizes(), ids=str)
def test_one_pass_is_step_by_step(family: str, scheme: Scheme, positions: str) -> None:
    lm = tiny_lm(family, scheme, positions=positions)
    with torch.no_grad():
        for segments in TEXTS.values():
            segments = text(scheme, segments)
            assert (whole(lm, segments) - by_steps(lm, segments)).abs().max() < EXACT


@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_control_a_boundary_that_is_left_out_is_seen(family: str, scheme: Scheme) -> None:
    """But by schemes that keep everything, or forget at the clock: a boundary is only when their storage is given back."""
    lm, segments = tiny_lm(family, scheme), text(scheme, PINNED)
    other = [replace(segments[0], compress=False), *segments[1:]]
    with torch.no_grad():
        apart = (whole(lm, segments) - by_steps(lm, other)).abs().max()
    assert apart > 1e-3 if scheme.name not in ("full", "window") else apart < EXACT


# ---- an idle adapter changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_idle_adapter_is_bit_identical_to_the_frozen_model(family: str, scheme: Scheme, dtype: torch.dtype) -> None:
    """Text without comp tokens: through us, through the base with the adapter attached, and through a stock model.

    A sliding window is the stock model for as much text as it sees whole.
    """
    lm = tiny_lm(family, scheme, dtype=dtype)
    ids = torch.arange(getattr(scheme, "size", 40)).remainder(17)[None]
    ours = layout([Segment(tuple(ids[0].tolist()), compress=False)], scheme)
    stock = reference.stock(lm, window=True)
    with torch.no_grad():
        wanted = stock(input_ids=ids).logits
        assert torch.equal(lm(ours), wanted)
        assert torch.equal(lm.base(input_ids=ids).logits, wanted)
        assert torch.equal(lm.train()(ours), wanted)


@pytest.mark.parametrize("family", sorted({f for f, _ in tiny_lms()}))
def test_control_an_adapter_that_acts_is_seen(family: str) -> None:
    lm = tiny_lm(family, Concat(n_comp=1), gate="all")
    ids = tuple(range(10))
    with torch.no_grad():
        wanted = reference.stock(lm)(input_ids=torch.tensor([ids])).logits
        assert (lm(layout([Segment(ids, compress=False)], lm.scheme)) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("family", sorted({f for f, _ in tiny_lms()}))
def test_lora_layers_run_where_gradients_are_wanted(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, the bare sum does where something is gated. All are in their places afterwards, after an error too. A user's own
    second adapter is not passed over, in whatever layer it is."""
    lm = tiny_lm(family, Concat(n_comp=1))
    layers = [m for m in lm.base.modules() if isinstance(m, LoraLayer)]
    calls: list[int] = []
    bare: list[int] = []
    forward = Bare.forward
    monkeypatch.setattr(Bare, "forward", lambda self, x: bare.append(1) or forward(self, x))
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))

    def ran(compress: bool) -> int:
        calls.clear()
        bare.clear()
        lm(layout([Segment((1, 2, 3), compress=compress)], lm.scheme))
        assert [m for m in lm.base.modules() if isinstance(m, LoraLayer)] == layers
        return len(calls)

    with torch.no_grad():
        assert (ran(compress=False), len(bare)) == (0, 0)
        assert (ran(compress=True), len(bare)) == (0, len(layers))
        fails = lm.family.layers(lm.base)[0].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lm(layout([Segment((1, 2, 3), compress=False)], lm.scheme))
        fails.remove()
        assert [m for m in lm.base.modules() if isinstance(m, LoraLayer)] == layers
        for layer in (layers[0], layers[-1]):
            layer.update_layer("other", 2, 2, LoraConfig())
            layer.set_adapter(["default", "other"])
            assert (ran(compress=False), len(bare)) == (len(layers), 0)
            layer.set_adapter("default")
            assert ran(compress=False) == 0
    assert (ran(compress=False), len(bare)) == (len(layers), 0)  # where gradients are wanted, nothing is moved


# ---- padding, batch mates, packing ------------------------------------------------------------------------------------------


def rows(scheme: Scheme) -> list[list[Segment]]:
    return [text(scheme, PINNED), text(scheme, STEPS), [Segment((11, 12), compress=False, target=True)], text(scheme, EMPTY)]


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_padding_batch_and_packing_change_nothing(family: str, scheme: Scheme, positions: str) -> None:
    lm = tiny_lm(family, scheme, positions=positions)
    plans = [layout(r, scheme, positions) for r in rows(scheme)]
    with torch.no_grad():
        alone = [lm(p)[0] for p in plans]
        batch = lm(stack(plans, to=max(p.shape[1] for p in plans) + 5))
        packed = lm(stack([pack(plans[:3]), pack(plans[2:])]))
    ends = torch.tensor([0, *(p.shape[1] for p in plans[:3])]).cumsum(0).tolist()
    for r, (plan, logits) in enumerate(zip(plans, alone)):
        raw = plan.tokens.raw[0]
        n = plan.shape[1]
        assert (batch[r, :n] - logits)[raw].abs().max() < EXACT
        if r < 3:
            assert (packed[0, ends[r] : ends[r] + n] - logits)[raw].abs().max() < EXACT
    assert (packed[1, plans[2].shape[1] :][: plans[3].shape[1]] - alone[3])[plans[3].tokens.raw[0]].abs().max() < EXACT


@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_rows_of_a_memory_are_memories_alone(family: str, scheme: Scheme) -> None:
    """Rows that are written at different times, by segments of different lengths, side by side."""
    lm, more = tiny_lm(family, scheme), Segment((2, 3), compress=False, target=True)
    texts = [text(scheme, PINNED), text(scheme, [*STEPS, more])]
    with torch.no_grad():
        alone = [by_steps(lm, t)[-len(t[-1].ids) :] for t in texts]
        memory = lm.memory(rows=2)
        for turn in range(max(map(len, texts)) - 1):
            memory.run([[t[turn]] if turn < len(t) - 1 else [] for t in texts])
        hidden = memory.run([[t[-1]] for t in texts])
    for r, t in enumerate(texts):
        assert (lm.logits(hidden[r, : len(t[-1].ids)]) - alone[r]).abs().max() < EXACT


@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_control_packing_without_rows_is_seen(family: str, scheme: Scheme) -> None:
    lm = tiny_lm(family, scheme)
    plans = [layout(r, scheme) for r in rows(scheme)[:2]]
    plan = pack(plans)
    leaky = replace(plan, tokens=replace(plan.tokens, row=plan.tokens.row * 0))
    with torch.no_grad():
        assert (lm(leaky)[0, -1] - lm(plans[1])[0, -1]).abs().max() > 1e-6


# ---- forgotten is forgotten -----------------------------------------------------------------------------------------------


def influence(lm, plan: Plan, cut: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """(n,) how much the last token's logits depend on each embedding, if nothing flows back through the keys and values of some
    columns (1, n) of any layer."""
    name, seen = attention.implementation_of(lm.base), []
    stock = ALL_ATTENTION_FUNCTIONS.get(name)

    def less(*tensors: Tensor) -> list[Tensor]:
        return [torch.where(cut[:, None, :, None], x.detach(), x) for x in tensors]

    def attend(module, q, k, v, *args, **kwargs):  # type: ignore[no-untyped-def]
        return (stock or attention.eager_of(module))(module, q, *less(k, v), *args, **kwargs)

    def kernel(q, k, v, *args, **kwargs):  # type: ignore[no-untyped-def]
        return sdpa(q, *less(k, v), *args, **kwargs)

    sdpa = functional.scaled_dot_product_attention
    hook = lm.base.get_input_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.requires_grad_()) or seen[-1])
    with pytest.MonkeyPatch.context() as patch:
        if name == "sdpa":  # a few queries go to torch directly, others through the stock function
            patch.setattr(functional, "scaled_dot_product_attention", kernel)
        else:
            patch.setitem(ALL_ATTENTION_FUNCTIONS, name, attend)
        lm(plan)[0, -1].square().sum().backward()
    hook.remove()
    return seen[0].grad[0].abs().sum(-1)


@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_a_forgotten_token_is_forgotten(family: str, scheme: Scheme) -> None:
    """A raw token of an earlier segment that no token of the last one sees: exactly no gradient reaches it once comp tokens, slots,
    pins and what is still seen of earlier segments are cut; through them it does (the control)."""
    lm, segments = tiny_lm(family, scheme), text(scheme, PINNED)
    if not scheme.hides:
        segments = [Segment(tuple(i for s in segments for i in s.ids[:2]))]
    plan = layout(segments, scheme)
    t = plan.tokens
    own = (t.raw & (t.segment == t.segment.max()))[0]
    mask = plan.mask(scheme)[0]
    forgotten = t.raw[0] & ~own & ~mask[own].any(0)
    assert bool(forgotten.any()) == scheme.hides
    held = ~own & ~forgotten
    flows, cut = influence(lm, plan, torch.zeros_like(held)[None]), influence(lm, plan, held[None])
    assert bool((cut[forgotten] == 0).all())
    assert bool((cut[own] > 0).all())
    if scheme.n_comp or scheme.mixes or not scheme.hides:
        assert bool((flows[forgotten] > 0).all())
    else:  # only raw tokens carry anything on, and only what they see themselves, a layer a step
        carried = mask.double().matrix_power(lm.n_layers)[-1] > 0
        assert torch.equal(flows[forgotten] > 0, carried[forgotten])


# ---- what no trained parameter reaches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "scheme"), [c for c in tiny_lms() if c[1].n_comp], ids=str)
def test_columns_before_the_first_comp_token_need_no_backward_pass(family: str, scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose first segments differ in length, and packed ones. Control: one column more loses gradients."""
    lm = tiny_lm(family, scheme).train()
    rows = [text(scheme, s) for s in (PINNED, STEPS)]
    plans = [layout([*s[:-1], replace(s[-1], loss=(True,) * len(s[-1].ids))], scheme) for s in rows]
    for plan in (stack(plans), pack(plans)):
        frozen = lm._frozen(plan)
        assert frozen == min(p.tokens.comp[0].nonzero()[0, 0] for p in plans[: len(plan.ids)])
        found = gradients(lm, plan)
        with monkeypatch.context() as patch:
            patch.setattr(lm, "_frozen", lambda _: 0)
            wanted = gradients(lm, plan)
            patch.setattr(lm, "_frozen", lambda _, n=frozen: n + 1)
            lost = gradients(lm, plan)
        assert max(float(g.abs().max()) for g in wanted.values()) > 1e-6
        assert gap(found, wanted) < EXACT
        assert gap(lost, wanted) > 1e-6


# ---- gradient checkpointing -----------------------------------------------------------------------------------------------


def gradients(lm, plan: Plan) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    lm.zero_grad()
    logits, labels = lm.labelled(plan)
    cross_entropy(logits, labels).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in lm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("family", "scheme"), [c for c in tiny_lms() if c[1].n_comp], ids=str)
def test_gradient_checkpointing_changes_nothing(family: str, scheme: Scheme, reentrant: bool) -> None:
    """The gate and the mix come along when a layer is run again. Control: without the gate, gradients are others, or an error."""
    lm = tiny_lm(family, scheme).train()
    segments = text(scheme, PINNED)
    plan = layout([*segments[:-1], replace(segments[-1], loss=(True,) * 3)], scheme)
    wanted = gradients(lm, plan)
    runs: list[int] = []
    hook = lm.family.layers(lm.base)[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    lm.base.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(lm, plan)
    hook.remove()
    assert len(runs) == 2
    assert gap(found, wanted) < EXACT
    calls: list[int] = []

    def lose(module, args, kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        return args, kwargs | ({"lora_gate": None} if len(calls) > 1 else {})

    lm.family.layers(lm.base)[0].self_attn.register_forward_pre_hook(lose, with_kwargs=True, prepend=True)
    try:
        lost = gap(gradients(lm, plan), wanted)
    except CheckpointError:
        assert not reentrant
    else:
        assert lost > 1e-6


def gap(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert set(found) == set(wanted)
    return max(float((found[name] - value).abs().max()) for name, value in wanted.items())
