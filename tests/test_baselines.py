"""The baselines without a trained memory: a sliding window of any size, and eviction by the norm of the keys, which has no mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reference
from context_memory import plugins
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.footprint import peak_if_said
from context_memory.generate import Output, Settings, generate
from context_memory.memory import Memory
from context_memory.plan import layout
from context_memory.schemes.full import Full
from context_memory.schemes.key_norm import KeyNorm
from context_memory.schemes.window import Window
from context_memory.testing import tiny_lm
from context_memory.text import Segment
from toys import Letters

torch.set_num_threads(1)
EXACT = 1e-10
N = 4
"""Tokens of a segment."""
TEXT = [
    Segment((5, 9, 3, 1), pins=(True, False, True, False)), Segment((7, 7, 8, 2)), Segment((1, 2, 8, 4), pins=(False, True, False, False)),
    Segment((6, 6, 2, 30)), Segment((9, 4, 4, 11)), Segment((3, 5, 1), compress=False, target=True),
]  # fmt: skip
PROMPTS = [[5, 9, 3, 1], [7], [1, 2, 8, 4, 6, 6, 2], [11, 12, 13]]
FAMILIES = ["llama", "qwen3"]
"""Grouped heads; norms of keys as they come, and as a layer makes them."""


def answers(lm, prompts: list[list[int]], pinned: bool = True, tokens: int = 30) -> list[Output]:  # type: ignore[no-untyped-def]
    encoder = Encoder(Letters(), plugins.make("boundaries", "every", n=N))  # type: ignore[arg-type]
    asked = [[Segment(tuple(p), compress=False, pins=(pinned,) * len(p))] for p in prompts]
    return generate(lm, encoder, asked, Settings(max_new_tokens=tokens))


def written(lm, segments: list[Segment]) -> tuple[Memory, Tensor]:  # type: ignore[no-untyped-def]
    """A memory of the segments, and the logits of all tokens."""
    memory = lm.memory()
    with torch.no_grad():
        return memory, torch.cat([lm.logits(memory.run([[s]])[0, : len(s.ids)]) for s in segments])


# ---- window ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5, 9, 40])
def test_a_window_of_any_size(size: int) -> None:
    """By the recursion, in one pass and step by step. A token at the edge is held as long as the next one sees it."""
    lm = tiny_lm("llama", Window(size=size))
    wanted = reference.logits(lm, TEXT)
    plan = layout(TEXT, lm.scheme)
    with torch.no_grad():
        assert (lm(plan)[plan.tokens.raw] - wanted).abs().max() < EXACT
    memory, steps = written(lm, TEXT)
    assert (steps - wanted).abs().max() < EXACT
    full = written(tiny_lm("llama", Full()), TEXT)[1]
    assert ((steps - full).abs().max() < EXACT) == (size == 40)
    last = 20  # position of the first token after the last boundary
    pins = {i for i, p in enumerate([p for s in TEXT[:-1] for p in s.pins or (False,) * N]) if p}
    held = {p for p in memory.held.position[0].tolist() if p < last}
    assert held == pins | {p for p in range(last) if last - p < size}


def test_a_window_decodes_within_its_size() -> None:
    for size in (4, 8, 16):
        outputs = answers(tiny_lm("llama", Window(size=size)), PROMPTS)
        # What the window left behind is overwritten; the open segment is held whole, with the token that finds it closed.
        assert max(o.peak_reasoning_kv_tokens for o in outputs) == max(size, N + 1)
        assert max(len(o.ids) for o in outputs) > size + N  # control: the answers are longer


# ---- key norm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", KeyNorm.variants(), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_keys_of_small_norm_stay(family: str, scheme: KeyNorm) -> None:
    """Against a plain loop over the heads of every layer, which remembers what each of them has. Pins stay in all heads."""
    lm = tiny_lm(family, scheme)
    memory, pins = lm.memory(), set[int]()
    have: dict[tuple[int, int], list[tuple[Tensor, Tensor, int]]] = {}
    clock, differ = 0, False
    for segment in TEXT[:-1]:
        n = len(segment.ids)
        plan = layout([segment], scheme, clock=clock, step=memory.step[0])
        with torch.no_grad():
            memory.advance(plan, [clock + n])
        pins |= {clock + i for i, pin in enumerate(segment.pins) if pin}
        for i, layer in enumerate(memory.layers):
            for head in range(layer.keys.shape[1]):
                fresh = zip(layer.keys[0, head, -n:].clone(), layer.values[0, head, -n:].clone(), range(clock, clock + n))
                mine = [*have.get((i, head), []), *fresh]
                others = [e for e in mine if e[2] not in pins]
                late = others[len(others) - scheme.recent :]
                rest = sorted(others[: len(others) - scheme.recent], key=lambda e: float(e[0].norm()))
                stay = {e[2] for e in [*late, *rest[: scheme.size - len(late)]]}
                have[i, head] = [e for e in mine if e[2] in pins] + [e for e in others if e[2] in stay]
        clock += n
        memory.fold([0])
        assert memory.length == [len(pins) + min(scheme.size, clock - len(pins))]
        assert memory.held.position[0][memory.held.pin[0]].tolist() == sorted(pins)
        for (i, head), mine in have.items():
            assert torch.equal(memory.layers[i].keys[0, head], torch.stack([e[0] for e in mine]))
            assert torch.equal(memory.layers[i].values[0, head], torch.stack([e[1] for e in mine]))
        differ |= len({tuple(e[2] for e in mine) for mine in have.values()}) > 1
    assert differ  # heads choose for themselves


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_above_the_text_is_the_full_context(family: str, pinned: bool) -> None:
    large, small, full = (tiny_lm(family, s) for s in (KeyNorm(size=99), KeyNorm(size=6, recent=2), Full()))
    whole = written(full, TEXT)[1]
    assert (written(large, TEXT)[1] - whole).abs().max() < EXACT
    assert (written(small, TEXT)[1] - whole).abs().max() > 1e-3
    wanted = [o.ids for o in answers(full, PROMPTS, pinned)]
    assert [o.ids for o in answers(large, PROMPTS, pinned)] == wanted != [o.ids for o in answers(small, PROMPTS, pinned)]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("scheme", KeyNorm.variants(), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_each_row_alone_and_never_larger_than_said(family: str, scheme: KeyNorm, pinned: bool) -> None:
    """The peak is also what `peak_if_said` makes of the answer; a prompt that is not pinned competes with it, and counts."""
    lm = tiny_lm(family, scheme)
    outputs = answers(lm, PROMPTS, pinned)
    assert sum(o.compressions for o in outputs) > 5
    for out, prompt in zip(outputs, PROMPTS):
        (alone,) = answers(lm, [prompt], pinned)
        assert replace(alone, peak_kv_bytes=0) == replace(out, peak_kv_bytes=0)
        pins = len(prompt) * pinned
        most = max(scheme.size + N, len(prompt) * (not pinned) + N + 1)
        assert alone.peak_kv_tokens - pins == alone.peak_reasoning_kv_tokens <= most
        assert alone.peak_kv_bytes <= (alone.peak_kv_tokens + 32) * lm.kv_bytes  # and the slack of a buffer that grows
        fed = out.ids if out.reason == "eos" else out.ids[:-1]  # the last one is sampled only
        steps = [fed[i : i + N] for i in range(0, len(fed), N)]
        first = Segment((*prompt, *steps[0]), pins=(pinned,) * len(prompt) + (False,) * len(steps[0]), compress=len(steps) > 1, target=True)
        said = [first, *(Segment(tuple(s), compress=i < len(steps) - 2, target=True) for i, s in enumerate(steps[1:]))]
        assert peak_if_said(layout(said, scheme), scheme, len(prompt)) == out.peak_reasoning_kv_tokens


def test_rows_of_a_memory_and_its_copies(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Written side by side, batched, forked, saved: each is what it was; the bytes are those of what is held."""
    lm = tiny_lm("llama", KeyNorm(size=5, recent=2))
    texts, more = [TEXT[:4], TEXT[1:3]], [3, 1, 2]
    alone = [written(lm, t)[0] for t in texts]
    side = lm.memory(rows=2)
    with torch.no_grad():
        for turn in range(4):
            side.run([[t[turn]] if turn < len(t) else [] for t in texts])
        for both in (side, Memory.batch([m.fork() for m in alone])):
            for r, memory in enumerate(alone):
                row = both.pick([r])
                assert (row.length, row.nbytes()) == (memory.length, memory.length[0] * lm.kv_bytes)
                assert (row.read(more) - memory.fork().read(more)).abs().max() < EXACT
        alone[0].save(tmp_path / "a.ccm")
        assert torch.equal(lm.open(tmp_path / "a.ccm").read(more), alone[0].fork().read(more))


def test_what_needs_a_mask_is_refused() -> None:
    lm = tiny_lm("llama", KeyNorm())
    with pytest.raises(InputError, match="'key_norm' chooses by the keys and has no mask for one pass"):
        lm(layout(TEXT, lm.scheme))
    with pytest.raises(InputError, match="keeps other tokens in every head and this model slides a window"):
        tiny_lm("mistral", KeyNorm())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Window, {"size": 1}, "size must be at least 2"),
        (Window, {"n_comp": 1}, "no comp tokens"),
        (KeyNorm, {"n_comp": 1}, "no comp tokens"),
        (KeyNorm, {"size": 4}, "recent from 0 to size"),
        (KeyNorm, {"size": 0, "recent": 0}, "size must be at least 1"),
    ],
)
def test_settings_that_cannot_be(kind: type, settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**settings)
