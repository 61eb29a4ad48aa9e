"""Laws about what a memory holds: its size, its bytes, copies and batches of it, and how long it lasts."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from bytes_alive import alive
from context_memory.memory import Memory
from context_memory.plan import layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment

torch.set_num_threads(1)
EXACT = 1e-10
WRITES = [
    Segment((5, 9, 3), pins=(True, False, False)), Segment((7,)), Segment(()),
    Segment((1, 2, 8, 4), pins=(False, False, True, False)), Segment(()), Segment((6, 6, 2)),
]  # fmt: skip


def writes(scheme: Scheme) -> list[Segment]:
    return WRITES if scheme.max_steps is None else WRITES[:1]


def written(lm, segments: list[Segment]) -> Memory:  # type: ignore[no-untyped-def]
    memory = lm.memory()
    for segment in segments:
        memory.run([[segment]])
    return memory


# ---- bytes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_memory_is_as_large_as_its_scheme_says_and_no_byte_more(family: str, scheme: Scheme, dtype: torch.dtype) -> None:
    lm = tiny_lm(family, scheme, dtype=dtype)
    memory, averages = lm.memory(), 0
    pins: list[bool] = []
    with torch.no_grad():
        for step, segment in enumerate(writes(scheme), start=1):
            memory.run([[segment]])
            pins += segment.pins or (False,) * len(segment.ids)
            entries = scheme.capacity(step) + sum(pins) if scheme.hides else len(pins)
            recent = scheme.size - 1 if scheme.name == "window" else getattr(scheme, "window", 0)
            recent = max(recent, getattr(scheme, "cache", 0) - step * scheme.n_comp)
            if recent:  # capacity is the most that it holds: a text may be short, and a pin near
                near = sum(pin or len(pins) - i <= recent for i, pin in enumerate(pins)) + step * scheme.n_comp
                assert near <= entries
                entries = near
            if scheme.pools:  # likewise: a segment may be shorter than its slots are many
                folded = [len(s.ids) - sum(s.pins) for s in writes(scheme)[:step]]
                short = sum(pins) + sum(scheme.slots(0, n) for n in folded)
                assert short <= entries
                entries = short
            elif scheme.mixes and step > scheme.delay:
                averages = scheme.n_comp * lm.kv_bytes * 4 // dtype.itemsize
            assert memory.length == [entries]
            assert memory.nbytes() == entries * lm.kv_bytes + averages == alive(memory)


def test_control_a_view_keeps_its_storage_and_is_counted() -> None:
    """Cutting a cache by a slice frees nothing, and `nbytes` says so."""
    memory = written(tiny_lm("llama", Concat(n_comp=2)), WRITES)
    before = memory.nbytes()
    for layer in memory.layers:
        layer.keys, layer.values = layer.keys[:, :, :1], layer.values[:, :, :1]
    assert memory.nbytes() == alive(memory) == before


# ---- copies and batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_two_prompts_after_the_same_memory_do_not_disturb_each_other(family: str, scheme: Scheme) -> None:
    lm = tiny_lm(family, scheme)
    first, second = [4, 8, 15, 16], [23, 42]
    with torch.no_grad():
        memory = written(lm, writes(scheme))
        bytes_before = memory.nbytes()
        one, two = memory.fork(), memory.fork()
        one.read(first)
        if scheme.max_steps is None:
            one.compress()
        after = two.read(second)
        assert torch.equal(after, written(lm, writes(scheme)).read(second))
        assert memory.nbytes() == bytes_before
        assert torch.equal(memory.fork().read(second), after)
        memory.read(first)  # the control: without a fork the second prompt sees the first one
        assert (memory.read(second) - after).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize(("family", "scheme"), tiny_lms(), ids=str)
def test_memories_of_different_lengths_as_one_batch(family: str, scheme: Scheme, positions: str) -> None:
    """Batched, read, written on and picked again: each row is what it would be alone. A new memory may be one of them."""
    lm = tiny_lm(family, scheme, positions=positions)
    starts = [writes(scheme)[:1], writes(scheme), []]
    prompts = [Segment(ids, compress=False, target=True) for ids in ((4, 8, 15, 16), (23,), (42, 2, 7))]
    more = [Segment((9, 9)), Segment(()), Segment((31, 30, 29))] if scheme.max_steps is None else [prompts[1]] * 3
    with torch.no_grad():
        alone = [written(lm, s) for s in starts]
        batch = Memory.batch([m.fork() for m in alone])
        for turn in (prompts, more, prompts):
            hidden = batch.run([[s] for s in turn])
            for r, (memory, segment) in enumerate(zip(alone, turn)):
                raw = slice(0, len(segment.ids))
                assert torch.allclose(memory.run([[segment]])[0, raw], hidden[r, raw], rtol=0, atol=EXACT)
        for r, memory in enumerate(alone):
            picked = batch.pick([r])
            assert (picked.length, picked.step, picked.clock) == (memory.length, memory.step, memory.clock)
            assert picked.nbytes() == memory.fork().nbytes()
            assert (picked.read([1, 2, 3]) - memory.read([1, 2, 3])).abs().max() < EXACT


# ---- a long life ----------------------------------------------------------------------------------------------------------


def test_merge_over_2000_turns_neither_grows_nor_drifts() -> None:
    """The float32 average stays that of all turns in float64; one kept in bf16 (the control) stops moving long before."""
    lm = tiny_lm("llama", Merge(n_comp=1), dtype=torch.bfloat16)
    lm.base.config.max_position_embeddings = 10_000
    memory, turns, counts = lm.memory(), 2000, []
    total = coarse = None
    with torch.no_grad():
        for t in range(turns):
            segment = Segment((t % 61, 3 + t % 7))
            memory.advance(layout([segment], lm.scheme, clock=memory.clock[0], step=t), [memory.clock[0] + 2])
            comp = int(memory.held.comp[0].nonzero()[-1])
            fresh = torch.stack([x for layer in memory.layers for x in (layer.keys[0, :, comp], layer.values[0, :, comp])])
            total = fresh.double() if total is None else total + fresh.double()
            coarse = fresh.clone() if coarse is None else coarse + (fresh - coarse) * (1 / (t + 1))
            memory.fold([0])
            assert (memory.tokens, memory.nbytes()) == (1, lm.kv_bytes * 3)
            if t % 500 == 499:
                assert alive(memory) == lm.kv_bytes * 3
                counts.append(sum(issubclass(type(x), Tensor) for x in gc.get_objects()))
    assert max(counts) - min(counts) < 5  # nothing of a turn lives on anywhere in the process
    exact = total / turns
    kept = torch.stack([x[0, :, 0] for pair in memory.mean for x in pair])
    held = torch.stack([x[0, :, 0] for layer in memory.layers for x in (layer.keys, layer.values)])
    assert kept.dtype == torch.float32
    drift, drift_coarse = ((x - exact).abs().max() / exact.abs().max() for x in (kept, coarse))
    assert drift < 2e-6
    assert torch.equal(held, kept.bfloat16())
    assert drift_coarse > 0.02


@pytest.mark.parametrize("scheme", [Merge(n_comp=1), Concat(n_comp=1)], ids=str)
def test_a_clock_that_runs_out_of_positions_is_a_clear_error(scheme: Scheme) -> None:
    """And the memory is as it was before."""
    lm = tiny_lm("llama", scheme)
    with torch.no_grad():
        memory = lm.memory()
        for _ in range(lm.max_positions // 50):
            memory.write([1] * 50)
        before = memory.length, memory.clock, memory.nbytes()
        with pytest.raises(ValueError, match=r"position 300 is past the model's 256.*Start a new memory"):
            memory.write([1] * 50)
        assert (memory.length, memory.clock, memory.nbytes()) == before
        memory.write([1] * 6)
