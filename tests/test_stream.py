"""Streams: a block of tokens is token by token, bytes stay the same, positions count within the cache, and the baseline has its room."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bytes_alive import alive
from context_memory import plugins
from context_memory.errors import UserError
from context_memory.memory_turn import MovingMemory, between, turned
from context_memory.model import CompressedLM
from context_memory.plan import RAW, build, layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.gist import Gist
from context_memory.schemes.merge import Merge
from context_memory.stream import Settings, SlidingWindow, Stream
from context_memory.testing import tiny_lm
from context_memory.text import Segment

torch.set_num_threads(1)
EXACT = 1e-10
SMALL = Settings(window=11, chunk=5, sink=2)
SCHEMES = [Concat(n_comp=2), Concat(n_comp=1, recurrent=False), Merge(n_comp=2), Merge(n_comp=1, average="exponential", decay=0.3)]
CAUSAL = [key for key in plugins.keys("families") if plugins.find("families", key).causal]  # type: ignore[attr-defined]
FAMILIES = [key for key in CAUSAL if plugins.find("families", key).streams]  # type: ignore[attr-defined]


def text(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 60, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def one_by_one(stream: Stream, ids: list[int]) -> Tensor:
    return torch.cat([stream.feed([i]) for i in ids])


# ---- a block is token by token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "scheme", "spacing"),
    [("llama", s, p) for s in SCHEMES for p in ("cache", "text")]
    + [(f, s, "cache") for f in FAMILIES if f != "llama" for s in SCHEMES[::2]],
    ids=str,
)
def test_blocks_are_token_by_token(family: str, scheme: Scheme, spacing: str) -> None:
    lm = tiny_lm(family, scheme, positions="base" if spacing == "text" else "skip")
    settings, ids = Settings(11, 5, sink=2, spacing=spacing), text(50)
    block, single, odd = Stream(lm, settings), Stream(lm, settings), Stream(lm, settings)
    whole = block.feed(ids)
    assert len(whole) == 49 and block.folds == 8
    assert (whole - one_by_one(single, ids)).abs().max() < EXACT
    assert (whole - torch.cat([odd.feed(ids[i:j]) for i, j in pairwise((0, 1, 30, 30, 41, 50))])).abs().max() < EXACT
    assert (block.looked_at, block.peak_entries, block.nbytes()) == (single.looked_at, single.peak_entries, single.nbytes())
    control = Stream(lm, Settings(11, 4, sink=2, spacing=spacing)).feed(ids)
    assert (whole - control)[:11].abs().max() < EXACT < 1e-3 < (whole - control).abs().max()


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("sink", [0, 2])
def test_a_window_of_one_chunk_is_the_one_pass_of_training(sink: int, positions: str) -> None:
    """With the text's distances and nothing dropped yet, chunks are segments, and a stream is what an adapter was trained on."""
    lm, chunk, ids = tiny_lm("llama", Concat(n_comp=2), positions=positions), 6, text(2 + 4 * 6)
    cuts = [0, *range(sink + chunk, len(ids), chunk), len(ids)]
    segments = [
        Segment(tuple(ids[a:b]), pins=(True,) * (sink if a == 0 else 0) + (False,) * (b - a - (sink if a == 0 else 0)), target=a > 0)
        for a, b in pairwise(cuts)
    ]
    plan = layout(segments, lm.scheme, positions)
    with torch.no_grad():
        scores = lm(plan)[plan.tokens.raw].log_softmax(-1)
    wanted = -scores[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    stream = Stream(lm, Settings(chunk, chunk, slots=20, sink=sink, spacing="text"))
    assert (stream.feed(ids) - wanted).abs().max() < EXACT and stream.folds >= 3
    control = Stream(lm, Settings(chunk, chunk, slots=20, sink=sink))
    assert (control.feed(ids) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=2)], ids=str)
def test_comp_tokens_see_their_chunk_and_not_the_window_behind_it(scheme: Scheme) -> None:
    lm, ids = tiny_lm("llama", scheme), text(14)

    def remembered(ids: list[int]) -> Tensor:
        stream = Stream(lm, SMALL)
        stream.feed(ids)
        assert stream.folds == 1
        where = (~stream.memory.held.raw)[0]
        assert where.sum() == 2
        return torch.cat([x[:, :, where] for layer in stream.memory.layers for x in (layer.keys, layer.values)])

    first = remembered(ids)
    assert (first - remembered([*ids[:7], *text(6, seed=1), ids[13]])).abs().max() < EXACT
    assert (first - remembered([*ids[:6], 61, *ids[7:]])).abs().max() > 1e-3


# ---- positions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turned_key_is_the_key_that_is_made_there(family: str) -> None:
    """In every layer: a token alone attends to itself, so that only its keys know where it stands."""
    lm = tiny_lm(family, Full())

    def keys(at: int) -> list[Tensor]:
        memory = lm.memory()
        with torch.no_grad():
            memory.advance(build([[(RAW, 0, True, False, at, 7, 0)]]), [at + 1])
        return [layer.keys for layer in memory.layers]

    kinds = MovingMemory(lm).kinds
    for kind, was, now in zip(kinds, keys(3), keys(31), strict=True):
        by = between(*(lm.family.angles(lm.base, torch.tensor([[p]]), kind) for p in (3, 31)))
        assert (turned(was, by) - now).abs().max() < EXACT
        assert (was - now).abs().max() > 1e-3
        small = turned(was.bfloat16(), tuple(x.float() for x in by))  # type: ignore[arg-type]
        assert small.dtype == torch.bfloat16 and (small - now).abs().max() < 0.02 * now.abs().max()


class Plain:
    """StreamingLLM by hand, one token at a time, for a llama: keys are kept as they are before the rotary embedding."""

    def __init__(self, lm: CompressedLM) -> None:
        self.model, self.lm = lm.base.model, lm
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.model.layers]
        self.at: list[int] = []
        """Where the text had them, for the control."""

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """(heads, n, d)"""
        angle = torch.cat([positions[:, None].float() * self.model.rotary_emb.inv_freq.float()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * angle.cos().double() + torch.cat([-second, first], -1) * angle.sin().double()

    def read(self, token: int, at: int, of_text: bool) -> Tensor:
        """Log-probabilities of what comes next."""
        self.at.append(at)
        x = self.model.embed_tokens.weight[token]
        for layer, kept in zip(self.model.layers, self.kept):
            a, heads, h = layer.self_attn, layer.self_attn.config, layer.input_layernorm(x)
            q, k, v = (p(h).view(-1, 1, a.head_dim) for p in (a.q_proj, a.k_proj, a.v_proj))
            kept.append((k, v))
            places = torch.tensor(self.at if of_text else range(len(kept)))
            group = heads.num_attention_heads // heads.num_key_value_heads
            key, value = (torch.cat(s, 1).repeat_interleave(group, 0) for s in zip(*kept))
            score = self.turn(q, places[-1:]) @ self.turn(key, places).transpose(1, 2) / a.head_dim**0.5
            x = x + a.o_proj((score.softmax(-1) @ value).flatten())
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.lm.logits(self.model.norm(x)).log_softmax(-1)

    def drop(self, sink: int, recent: int) -> None:
        for entries in (*self.kept, self.at):
            del entries[sink : len(entries) - recent]


@pytest.mark.parametrize("beside", [None, Concat(n_comp=2)], ids=str)
def test_the_window_is_streaming_llm_by_hand(beside: Scheme | None) -> None:
    lm, ids, s = tiny_lm("llama", Full()), text(60), SMALL
    found = SlidingWindow(lm, s, beside).feed(ids)

    def by_hand(of_text: bool) -> Tensor:
        plain, out, step = Plain(lm), [], 0
        for i, token in enumerate(ids):
            if i >= s.sink + s.window and (i - s.sink - s.window) % s.chunk == 0:
                step += 1
                more = 0 if beside is None else min(2 * step, 8) + 2
                plain.drop(s.sink, min(len(plain.at) - s.sink, s.window - s.chunk + more))
            out.append(plain.read(token, i, of_text))
        return torch.stack([-p[y] for p, y in zip(out, ids[1:])])

    with torch.no_grad():
        assert (found - by_hand(of_text=False)).abs().max() < EXACT
        assert (found - by_hand(of_text=True)).abs().max() > 1e-3


def test_positions_stay_below_the_size_of_the_cache() -> None:
    """The tiny models end at position 256; a stream goes on, a memory whose clock counts the text does not."""
    lm = tiny_lm("llama", Concat(n_comp=2))
    for spacing, most in (("cache", 2 + 8 + 11), ("text", 2 + 4 * 5 + 11)):
        stream = Stream(lm, Settings(11, 5, sink=2, spacing=spacing))
        stream.feed(text(270))
        assert stream.memory.clock[0] <= most and int(stream.memory.now.max()) < most
    memory = lm.memory()
    with torch.no_grad():
        for _ in range(5):
            memory.write(text(50))
        with pytest.raises(UserError, match="past the model's 256"):
            memory.write(text(50))


# ---- memory ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*SCHEMES, None], ids=str)
def test_bytes_do_not_grow(scheme: Scheme | None) -> None:
    lm = tiny_lm("llama", scheme or Full())
    stream = SlidingWindow(lm, SMALL) if scheme is None else Stream(lm, SMALL)
    bytes_, cycle = [], 5 * 12
    for i in range(5):
        stream.feed(text(cycle, seed=i))
        bytes_.append(alive(stream))
        averages = 2 * lm.scheme.n_comp * lm.kv_bytes // 2 if lm.scheme.mixes else 0
        assert stream.nbytes() == stream.entries * lm.kv_bytes + averages
    assert len(set(bytes_)) == 1 and stream.nbytes() < bytes_[0] < 2 * stream.peak_bytes
    assert stream.peak_entries == 2 + 11 + (0 if scheme is None else {"concat": 5, "merge": 3}[scheme.name] * scheme.n_comp)
    control = SlidingWindow(lm, Settings(200, 5)) if scheme is None else Stream(lm, Settings(200, 5))
    control.feed(text(100))
    small = alive(control)
    control.feed(text(50))
    assert alive(control) > small


@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Concat(n_comp=1), Merge(n_comp=2)], ids=str)
def test_the_window_is_never_given_fewer_entries(scheme: Scheme) -> None:
    ours, theirs = Stream(tiny_lm("llama", scheme), SMALL), SlidingWindow(tiny_lm("llama", Full()), SMALL, scheme)
    working = scheme.n_comp * (2 if scheme.mixes else 1)
    for i in text(90):
        ours.feed([i]), theirs.feed([i])
        assert theirs.entries == min(theirs.seen, ours.entries + (working if ours.folds else 0))
    assert ours.peak_entries == theirs.peak_entries
    alone = SlidingWindow(tiny_lm("llama", Full()), SMALL)
    alone.feed(text(90))
    assert alone.peak_entries < ours.peak_entries


@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=2)], ids=str)
def test_a_cache_of_one_size(scheme: Scheme) -> None:
    """Sink, memory and window together; the window shrinks while the memory fills."""
    lm, ids = tiny_lm("llama", scheme), text(90)
    sizes = Settings(chunk=5, slots=None if scheme.mixes else 6, sink=2, cache=21)
    whole, single, beside = Stream(lm, sizes), Stream(lm, sizes), SlidingWindow(lm.under(Full()), sizes, scheme)

    def at_the_most(stream: Stream) -> list[int]:
        """Entries before room was made."""
        held = []
        for i in ids:
            stream.feed([i])
            held.append(stream.entries)
        return [a for a, b in pairwise(held) if b < a]

    assert (whole.feed(ids) - one_by_one(single, ids)).abs().max() < EXACT
    beside.feed(ids)
    found, control = at_the_most(Stream(lm, sizes)), at_the_most(Stream(lm, Settings(19, 5, sizes.slots, sink=2)))
    assert len(found) == whole.folds == beside.folds > 8 and set(found) == {21} and control[0] == 21 < control[1]
    assert whole.peak_entries == beside.peak_entries == 21 + scheme.n_comp * (2 if scheme.mixes else 1)


def test_the_oldest_slots_are_dropped() -> None:
    """A chunk is remembered for as long as its slots are there (of a scheme in which a memory does not read the one before)."""
    lm = tiny_lm("llama", Concat(n_comp=2, recurrent=False))
    for slots in (2, 4, 8):
        stream = Stream(lm, Settings(11, 5, slots=slots, sink=2))
        stream.feed(text(80))
        assert stream.entries - stream.recent - 2 == slots
    few, many = (Stream(lm, Settings(11, 5, slots=n, sink=2)).feed(text(80)) for n in (2, 8))
    assert (few - many)[:17].abs().max() < EXACT < 1e-3 < (few - many)[17:].abs().max()


# ---- input -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4, "chunk": 5}, "at most window=4, got chunk=5"),
        ({"window": 1}, "window must be at least 2"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"sink": -1}, "sink must be at least 0"),
        ({"spacing": "wide"}, "spacing must be one of cache, text, got 'wide'"),
        ({"slots": 3}, "multiple of the 2 comp tokens of a chunk, got slots=3"),
        ({"slots": 0}, "multiple of the 2 comp tokens"),
        ({"cache": 14, "chunk": 5}, "cache=14 leaves 2 raw tokens beside sink and memory, fewer than chunk=5"),
        ({"cache": 40, "chunk": 2}, "chunk must be more than the 2 entries that remember it, got 2"),
        ({"cache": 300}, "the cache reaches position 302"),
        ({"window": 300}, "the cache reaches position 314 and the model was made for 256"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stream(tiny_lm("llama", Concat(n_comp=2)), Settings(**settings))  # type: ignore[arg-type]


def test_schemes_that_cannot_stream_are_refused() -> None:
    class Own(Concat):
        """A scheme with a cap of its own."""

        def capacity(self, step: int) -> int:
            return min(step, 3) * self.n_comp

    for scheme in (Full(), Gist(n_comp=2), Own(n_comp=2), Concat(n_comp=2, window=4), Concat(n_comp=2, cache=9)):
        with pytest.raises(UserError, match=f"scheme '{scheme.name}' does not add one chunk after another"):
            Stream(tiny_lm("llama", scheme), SMALL)
    with pytest.raises(UserError, match=r"merges into its 2 slot\(s\)"):
        Stream(tiny_lm("llama", Merge(n_comp=2)), Settings(slots=8))
    with pytest.raises(UserError, match="runs the plain model"):
        SlidingWindow(tiny_lm("llama", Concat(n_comp=2)), SMALL)
    stream = Stream(tiny_lm("llama", Concat(n_comp=2)), SMALL)
    assert len(stream.feed([])) == 0 and len(stream.feed([5])) == 0 and len(stream.feed([6])) == 1
