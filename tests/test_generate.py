"""Decoding: a batch of N == N alone; what was generated is what one masked pass over it would have chosen; bytes are freed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from context_memory import plugins
from context_memory.boundaries.base import Boundary, Step
from context_memory.boundaries.every import Every
from context_memory.encode import Encoder, Keeping
from context_memory.generate import Decoder, Settings, drawn, generate
from context_memory.pins.numbers import Numbers
from context_memory.plan import PAD, RAW, Column, build, layout
from context_memory.schemes.concat import Concat
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Segment
from toys import Endless, Letters, Thirds


class Some(Boundary):
    """Ends a segment after tokens whose id is a multiple of 5, and after 7 tokens."""

    max_segment = 7

    def ends(self, step: Step) -> bool:
        return step.ids[-1] % 5 == 0


class Digits(Letters):
    """Every token is a number of one digit."""

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(f" {i % 10}" for i in ids)


PROMPTS = [[5, 9, 3, 1], [7], [1, 2, 8, 4, 6, 6, 2], [11, 12, 13], [31, 30]]


def segments(ids: list[int], kept: bool) -> list[Segment]:
    return [Segment(tuple(ids), compress=False, pins=(kept,) * len(ids) if kept else ())]


def cases() -> list[object]:
    """Every scheme on two unlike families, every family with the schemes that differ in kind: decoding is slow, and what it adds to the
    one pass (whose law is run for every pair) knows families and schemes through different seams. `base` counts positions in one place."""
    kinds = {"concat", "merge", "full", "nothing"}
    seen, out = set(), []
    for family, scheme in tiny_lms():
        first = (family, scheme.name) not in seen
        seen.add((family, scheme.name))
        if scheme.max_steps is None and (family in ("llama", "mistral") or (first and scheme.name in kinds)):
            for positions in ("skip", "base") if family == "llama" else ("skip",):
                out.append(pytest.param(family, scheme, positions, id=f"{positions}-{family}-{scheme}"))
    return out


@pytest.mark.parametrize(("family", "scheme", "positions"), cases())
def test_batch_equals_alone_and_one_pass(family: str, scheme, positions: str) -> None:  # type: ignore[no-untyped-def]
    lm = tiny_lm(family, scheme, positions=positions)
    encoder = Encoder(Letters(), Some(), [Thirds()])
    settings = Settings(max_new_tokens=24)
    prompts = [segments(p, kept=i % 2 == 0) for i, p in enumerate(PROMPTS)]
    batch = generate(lm, encoder, prompts, settings)
    assert sum(o.compressions for o in batch) > 5 or not scheme.hides
    for out, prompt in zip(batch, prompts):
        (alone,) = generate(lm, encoder, [prompt], settings)
        assert alone.ids == out.ids and alone.peak_kv_tokens == out.peak_kv_tokens and alone.compressions == out.compressions
        steps = encoder.boundary.split(out.ids[:-1], encoder.piece)
        last_closed = len(encoder.boundary.split([*out.ids[:-1], 1], encoder.piece)) > len(steps)
        whole = [*prompt]
        for i, s in enumerate(steps):
            closed = i < len(steps) - 1 or last_closed
            whole.append(Segment(s, pins=encoder.pin(s), compress=closed, target=True))
        plan = layout(whole, scheme, positions)
        with torch.no_grad():
            logits = lm(plan)[0][plan.tokens.raw[0]]
        chosen = logits[len(prompt[0].ids) - 1 :].argmax(-1).tolist()
        said = out.ids + [63] * (out.reason == "eos")
        assert chosen == said[: len(chosen)]


def test_what_a_rule_knows_of_earlier_segments_is_what_one_pass_knows() -> None:
    """Numbers kept once; each row goes on from its own question."""
    lm = tiny_lm("llama", Concat(n_comp=1))
    prompts = [[Segment(tuple(p), compress=False, pins=(True,) * len(p), question=True)] for p in PROMPTS]
    told = {}
    for once in (True, False):
        encoder = Encoder(Digits(), Every(n=4), [Numbers(once=once)])
        outs = generate(lm, encoder, prompts, Settings(max_new_tokens=24))
        told[once] = [o.ids for o in outs]
        for out, prompt in zip(outs, prompts):
            keeping = Keeping(encoder, prompt)
            steps = encoder.boundary.split(out.ids, encoder.piece)
            whole = [*prompt, *(Segment(step, pins=keeping.pin(step), target=True) for step in steps)]
            with torch.no_grad():
                logits = lm(plan := layout(whole, lm.scheme))[0][plan.tokens.raw[0]]
            assert logits[len(prompt[0].ids) - 1 :].argmax(-1).tolist()[: len(out.ids)] == out.ids
    assert told[True] != told[False]


@pytest.mark.parametrize("scheme", ["full", "concat"])
def test_rows_that_have_ended_are_left_out(scheme: str) -> None:
    """One token of three rows that hold equally much, one of them idle: neither mask nor cache may lose track of whose it is."""
    lm = tiny_lm("llama", plugins.make("schemes", scheme))  # type: ignore[arg-type]
    texts = [Segment((5, 9, 3), compress=False), Segment((7, 7, 1), compress=False), Segment((2, 8, 4), compress=False)]
    memory = lm.memory(rows=3)
    memory.run([[t] for t in texts])
    token: Column = (RAW, 0, True, False, 3, 11, 0)
    hidden = memory.advance(build([[token], [], [token]]), [4, 3, 4])
    for row in (0, 2):
        alone = lm.memory()
        alone.run([[texts[row]]])
        expected = alone.advance(build([[token]]), [4])
        assert torch.allclose(hidden[row, 0], expected[0, 0], atol=1e-12, rtol=0)
    assert memory.length == [4, 3, 4] and not torch.allclose(hidden[0, 0], hidden[2, 0])


def test_control_a_boundary_elsewhere_changes_the_answer() -> None:
    lm = tiny_lm("llama", plugins.make("schemes", "concat", n_comp=1))  # type: ignore[arg-type]
    encoder, other = Encoder(Letters(), Some()), Encoder(Letters(), plugins.make("boundaries", "every", n=3))  # type: ignore[arg-type]
    prompts = [segments(p, kept=False) for p in PROMPTS]
    settings = Settings(max_new_tokens=24)
    assert [o.ids for o in generate(lm, encoder, prompts, settings)] != [o.ids for o in generate(lm, other, prompts, settings)]


@pytest.mark.parametrize(("positions", "n"), [(p, n) for p in ("skip", "base") for n in range(240, 248)])
def test_a_row_without_positions_ends_and_its_batch_goes_on(positions: str, n: int) -> None:
    """Whatever is fed last: a token, or comp tokens too, which take places of their own with `base`."""
    lm = tiny_lm("llama", Concat(n_comp=2), positions=positions)
    encoder = Encoder(Letters(), plugins.make("boundaries", "every", n=3))  # type: ignore[arg-type]
    long, short = segments([1 + i % 40 for i in range(n)], kept=True), segments(PROMPTS[0], kept=True)
    settings = Settings(max_new_tokens=24)
    cut, whole = generate(lm, encoder, [long, short], settings)
    taken = n + len(cut.ids) - 1 + 2 * cut.compressions * (positions == "base")
    assert cut.reason == "length" and lm.max_positions - 3 < taken <= lm.max_positions == 256
    assert [cut.ids, whole.ids] == [generate(lm, encoder, [p], settings)[0].ids for p in (long, short)] and len(whole.ids) == 24


@pytest.mark.parametrize("scheme", ["concat", "merge", "nothing"])
def test_a_boundary_at_every_token_the_first_one_too(scheme: str) -> None:
    lm = tiny_lm("llama", plugins.make("schemes", scheme))  # type: ignore[arg-type]
    encoder = Encoder(Letters(), Every(n=1))
    outs = generate(lm, encoder, [segments(p, kept=True) for p in PROMPTS], Settings(max_new_tokens=8))
    for out, prompt in zip(outs, PROMPTS):
        assert out.compressions >= len(out.ids) - 2 > 0  # the last token is never fed, and a fold waits for the next one
        plan = layout([*segments(prompt, kept=True), *(Segment((i,), target=True) for i in out.ids)], lm.scheme)
        with torch.no_grad():
            logits = lm(plan)[0][plan.tokens.raw[0]]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist()[: len(out.ids)] == out.ids


@pytest.mark.parametrize(("window", "cache"), [(2, 0), (5, 0), (9, 0), (2, 11), (0, 8)])
def test_what_the_window_left_behind_is_not_held(window: int, cache: int) -> None:
    """Not even until its segment's successor ends, row by row; what is held is what the next token sees and the one just fed."""
    lm = tiny_lm("llama", Concat(n_comp=1, window=window, cache=cache))
    encoder = Encoder(Letters(), Every(n=6))
    decoder, most = Decoder(lm, encoder, [segments(p, kept=True) for p in PROMPTS], Settings(max_new_tokens=20)), 0
    for _ in decoder.run():
        memory = decoder.memory
        for lane, row in enumerate(decoder._lanes):
            held = memory.held.map(lambda x: x[lane])  # noqa: B023
            assert int((held.kind != PAD).sum()) == memory.length[lane]
            if row is not None and row.out.compressions:
                old = held.raw & ~held.pin & (held.segment < memory.step[lane])
                seen = max(window, cache - memory.step[lane])
                assert (memory.clock[lane] - held.position[old] <= seen + 1).all()  # seen by the next token or by the last one
                most = max(most, int(old.sum()))
    assert most >= max(window, cache - 3) - 1  # control: it does look back


@pytest.mark.parametrize("lag", [0, 5])
def test_a_memory_is_gone_on_with_after_an_answer(lag: int) -> None:
    """Segments that had ended and were not folded are open text again: no token is lost to what comes next."""
    lm, open_ends = tiny_lm("llama", Concat(n_comp=1, window=40, lag=lag)), 0
    for tokens in range(4, 16):
        memory = lm.memory()
        (out,) = generate(lm, Endless(Letters(), Every(n=3)), [segments([5, 9, 3], kept=True)], Settings(max_new_tokens=tokens), memory)
        fed, folded = out.ids[:-1], 3 * out.compressions
        open_ends += len(fed) - folded >= 3
        whole = [*segments([5, 9, 3], kept=True), *(Segment(tuple(fed[i : i + 3]), target=True) for i in range(0, folded, 3))]
        plan = layout([*whole, Segment((*fed[folded:], 8, 4), compress=False, target=True)], lm.scheme)
        with torch.inference_mode():
            assert torch.allclose(memory.read([8, 4])[0], lm(plan)[0, -2:], atol=1e-10)
    assert open_ends  # control: some answer ended with a segment that waited


def folds(lag: int) -> tuple[list[int], list[int]]:
    """How many tokens the answers had when some row ran comp tokens, and compressions row by row; segments end here and there."""
    lm = tiny_lm("llama", Concat(n_comp=1, window=12, lag=lag))
    decoder = Decoder(lm, Encoder(Letters(), Some()), [segments(p, kept=True) for p in PROMPTS], Settings(max_new_tokens=32))
    when, before = set[int](), [0] * len(PROMPTS)
    step = decoder._step

    def counted() -> None:
        said = max(len(row.out.ids) for row in decoder._lanes if row is not None)
        step()
        now = [out.compressions for out in decoder.outputs]
        when.update([said] if now != before else [])
        before[:] = now

    decoder._step = counted  # type: ignore[method-assign]
    for _ in decoder.run():
        pass
    return sorted(when), before


def test_comp_tokens_are_run_in_company() -> None:
    """With a lag at every so manieth step, and in between where a second segment of a row has ended; the compressions are as many."""
    (often, every), (seldom, lagging) = folds(0), folds(4)
    assert len(seldom) < len(often) and len([n for n in seldom if n % 4]) < len([n for n in often if n % 4])
    assert sum(every) > 10 and sum(every) - len(PROMPTS) <= sum(lagging) <= sum(every) + len(PROMPTS)


def test_sampling_is_seeded_row_by_row() -> None:
    lm = tiny_lm("llama", plugins.make("schemes", "concat", n_comp=1))  # type: ignore[arg-type]
    encoder = Encoder(Letters(), Some())
    prompts = [segments(p, kept=False) for p in PROMPTS]
    hot = Settings(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    first, again = (generate(lm, encoder, prompts, hot) for _ in range(2))
    other = generate(lm, encoder, prompts, Settings(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=4))
    assert [o.ids for o in first] == [o.ids for o in again] != [o.ids for o in other]


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    """Over all of [0, 1), row by row: the shares are the probabilities, and what has none is never drawn."""
    likely = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0], [0.125, 0.0, 0.0, 0.0, 0.0, 0.875]])
    chance = torch.arange(64) / 64
    found = torch.stack([drawn(likely, u.expand(2)) for u in chance], dim=1)
    assert found.diff().min() >= 0
    shares = torch.stack([row.bincount(minlength=6) / 64 for row in found])
    assert torch.equal(shares, likely)
    assert drawn(likely, torch.tensor([1 - 2**-24, 1 - 2**-24])).tolist() == [4, 5]


class Counted(TorchDispatchMode):
    """Counts operations by name; `_local_scalar_dense` moves a number off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", ["concat", "merge", "compressive", "nothing", "window"])
def test_a_device_is_asked_as_often_for_one_row_as_for_many(scheme: str) -> None:
    """On a GPU every question waits for all that was queued: one a row makes boundaries cost more than the model."""
    lm = tiny_lm("llama", plugins.make("schemes", scheme))  # type: ignore[arg-type]
    encoder, counts = Encoder(Letters(), Every(n=3), [Thirds()]), []
    for rows in (2, 8):
        with Counted() as mode:
            outs = generate(lm, encoder, [segments([5, 9, 3, 1], kept=True)] * rows, Settings(max_new_tokens=10))
        assert all(o.compressions == outs[0].compressions > 1 for o in outs)
        counts.append({name: mode.ops[name] for name in ("_local_scalar_dense", "index", "index_put_", "_to_copy", "sum")})
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": -1}, "window must be 0 or more tokens, got -1"),
        ({"window": 8, "cache": 8}, "cache must be more entries than window=8, or 0 for a window of one length, got 8"),
        ({"cache": -1}, "cache must be more entries than window=0"),
        ({"lag": 1}, "lag must be between 0 and window=0 tokens"),
        ({"window": 4, "cache": 9, "lag": 5}, "and window=4 tokens.*got 5"),
        ({"window": 4, "lag": -1}, "lag must be between 0.*got -1"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Concat(**settings)


@pytest.mark.parametrize("name", ["num_beams", "assistant_model", "repetition_penalty"])
def test_what_cannot_work_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not supported with a compressed memory: .+"):
        Settings.of(**{name: 4})
    assert Settings.of(do_sample=False, num_beams=1).temperature == 0


def test_stock_generate_goes_on_from_a_memory() -> None:
    lm = tiny_lm("llama", plugins.make("schemes", "concat", n_comp=2))  # type: ignore[arg-type]
    memory = lm.memory()
    for segment in ([5, 9, 3], [7, 1, 1], [2]):
        memory.write(segment)
    before = memory.nbytes()
    prompt = [4, 8, 15]
    stock = lm.base.generate(**memory.inputs(prompt), max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()[-8:]
    never = Encoder(Letters(), plugins.make("boundaries", "turn"))  # type: ignore[arg-type]
    (ours,) = generate(lm, never, [segments(prompt, kept=False)], Settings(max_new_tokens=8), memory.fork())
    assert stock == ours.ids and memory.nbytes() == before
    (without,) = generate(lm, never, [segments(prompt, kept=False)], Settings(max_new_tokens=8))
    assert without.ids != ours.ids
