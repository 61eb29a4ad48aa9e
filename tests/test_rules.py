"""Update rules and baselines against each other: where two of them must agree exactly, and where they must not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import toys
from context_memory import adapter, compose, loading, plugins
from context_memory.boundaries.turn import Turn
from context_memory.data.base import Dataset
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.evaluate import Settings, evaluate
from context_memory.mixing import unroll
from context_memory.output import Settings as Decode
from context_memory.pins.sink import Sink
from context_memory.plan import layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.capped import Capped
from context_memory.schemes.compressive import Compressive
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.gist import Gist
from context_memory.schemes.key_norm import KeyNorm
from context_memory.schemes.merge import Merge
from context_memory.schemes.nothing import Nothing
from context_memory.schemes.window import Window
from context_memory.testing import tiny_lm
from context_memory.text import Example, Segment

torch.set_num_threads(1)
EXACT = 1e-10
TEXT = [
    Segment((5, 9, 3)), Segment((7,)), Segment((1, 2, 8, 4)), Segment((6, 2), target=True), Segment((9, 9, 1)), Segment((30, 31)),
    Segment((6, 6, 2), compress=False, target=True),
]  # fmt: skip


def logits(scheme: Scheme, segments: Sequence[Segment] = TEXT) -> Tensor:
    """(raw tokens, vocabulary) in one pass. A model of one seed is the same whatever its scheme."""
    lm = tiny_lm("llama", scheme)
    plan = layout(segments, scheme)
    with torch.no_grad():
        return lm(plan)[plan.tokens.raw]


def gap(a: Scheme, b: Scheme) -> float:
    return float((logits(a) - logits(b)).abs().max())


def test_a_cap_lies_between_merge_and_concat() -> None:
    """A cap of 1 is merge, one that is not reached is concat, merged or dropped; the last three pairs are the controls."""
    assert gap(Capped(cap=1), Merge()) < EXACT
    assert gap(Capped(cap=6), Concat()) < EXACT
    assert gap(Capped(cap=6, evicted="dropped"), Concat()) < EXACT
    assert gap(Capped(cap=3), Merge()) > 1e-3
    assert gap(Capped(cap=5), Concat()) > 1e-3
    assert gap(Capped(cap=3), Capped(cap=3, evicted="dropped")) > 1e-3


ONLINE = Concat(recurrent=False)
"""Gisting-online, with an adapter of gist."""


def test_gisting_online_is_gisting_a_segment_at_a_time() -> None:
    """One segment: gist. Several: none sees another."""
    short = [TEXT[0], TEXT[-1]]
    assert (logits(ONLINE, short) - logits(Gist(), short)).abs().max() < EXACT
    assert gap(ONLINE, Concat()) > 1e-3
    lm = tiny_lm("llama", ONLINE)
    memory, alone = lm.memory(), lm.memory()
    with torch.no_grad():
        memory.write([5, 9, 3])
        memory.write([1, 2, 8])
        alone.clock, alone.step = [3], [1]  # the second segment as if there had been no first one
        alone.write([1, 2, 8])
    for both, one in zip(memory.layers, alone.layers):
        assert torch.allclose(both.keys[:, :, 2:], one.keys, atol=EXACT) and torch.allclose(both.values[:, :, 2:], one.values, atol=EXACT)


def test_pooling_nothing_is_the_full_context() -> None:
    """As many entries as tokens: every mean is of one token. With fewer, another model."""
    assert gap(Compressive(entries=9), Full()) < EXACT
    assert gap(Compressive(entries=2), Full()) > 1e-3
    assert gap(Compressive(entries=2), Nothing()) > 1e-3


def test_weights_by_hand() -> None:
    def last(scheme: Scheme, t: int = 4) -> list[float]:
        return unroll(torch.tensor([scheme.rate(s) for s in range(t)], dtype=torch.float64))[-1].tolist()

    assert last(Merge()) == pytest.approx([0.25] * 4)
    assert last(Merge(average="exponential", decay=0.5)) == pytest.approx([0.125, 0.125, 0.25, 0.5])
    assert last(Merge(average="recency")) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert last(Merge(average="recency", power=2.0)) == pytest.approx([1 / 30, 4 / 30, 9 / 30, 16 / 30])
    assert last(Merge(average="recency", power=0.0)) == pytest.approx(last(Merge()))


@pytest.mark.parametrize("average", ["mean", "exponential", "recency"])
def test_a_rate_that_has_not_learnt_is_the_rule(average: str) -> None:
    """Zeros change nothing; what is learnt does, and every part of it gets a gradient from text that reads the memory."""
    lm = tiny_lm("llama", Merge(average=average, learned=True)).train()
    wanted, plan = logits(Merge(average=average)), layout(TEXT, lm.scheme)
    rate = lm.comp.rate
    assert rate is not None
    with torch.no_grad():
        moved = lm(plan)[plan.tokens.raw]
        rate.weight.zero_()
        rate.bias.zero_()
        still = lm(plan)[plan.tokens.raw]
    assert (still - wanted).abs().max() < EXACT < 1e-3 < (moved - wanted).abs().max()
    lm(plan)[plan.tokens.raw].square().sum().backward()
    assert all(p.grad is not None and bool((p.grad.abs() > 0).all()) for p in (rate.weight, rate.bias))


def test_learned_rates_are_trained_and_travel_with_the_adapter(tmp_path: Path) -> None:
    model = toys.folder(tmp_path / "model")
    settings = [f"model={model}", "model.dtype=float32", "model.lora_r=2", "data=tally", "scheme=merge"]

    def built(place: Path, *more: str):  # type: ignore[no-untyped-def]
        config = compose.load([*settings, *more])
        lm = loading.build(config)
        trained = {n for n, p in lm.named_parameters() if p.requires_grad}
        if lm.comp.rate is not None:
            with torch.no_grad():
                lm.comp.rate.weight.normal_()
                lm.comp.rate.bias.normal_()
        adapter.save(lm, place, loading.card_of(lm, config, place))
        return lm, trained

    lm, trained = built(tmp_path / "with", "scheme.learned=true")
    plain, fewer = built(tmp_path / "without")
    assert trained - fewer == {"comp.rate.weight", "comp.rate.bias"}
    again = loading.load(str(model), tmp_path / "with", dtype="float32")
    assert again.comp.rate is not None and lm.comp.rate is not None and again.scheme.learned
    assert torch.equal(again.comp.rate.weight, lm.comp.rate.weight) and torch.equal(again.comp.rate.bias, lm.comp.rate.bias)
    assert loading.load(str(model), tmp_path / "with", scheme=Merge(), dtype="float32").comp.rate is None
    with pytest.raises(UserError, match=r"has no learned rates; use scheme\.learned=false"):
        loading.load(str(model), tmp_path / "without", scheme=replace(plain.scheme, learned=True), dtype="float32")


# ---- a table of data with context segments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts(Dataset):
    """Three lines, a question, an answer; a character is a token."""

    first: str = "the key is under the mat"

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("where is it?", answer, (self.first, "it rains on " + answer, "we eat"), id=answer) for answer in ("mat", "a box")]

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(answer == example.target)}


SUNK = (Sink(),)
ROWS = [(Full(), ()), (Window(size=6), SUNK), (KeyNorm(size=8, recent=2), SUNK), (Compressive(entries=3), SUNK), (Nothing(), ())]


@pytest.mark.parametrize(("scheme", "pins"), ROWS, ids=str)
def test_baselines_on_context_segments(scheme: Scheme, pins: tuple[Sink, ...], tmp_path: Path) -> None:
    """Their peaks counted by hand; another first line is a control that only those see who keep something of it."""
    lm = loading.load(str(toys.folder(tmp_path / "model")), scheme=scheme, dtype="float64")
    encoder = Encoder(lm.tokenizer, Turn(), pins)
    settings = Settings(Decode(max_new_tokens=4), batch_size=2)
    nll = []
    for name, data in (("a", Facts()), ("b", Facts(first="the kez is under the tab"))):
        metrics = evaluate(lm, encoder, data, data.examples("test"), settings, tmp_path / name)
        assert metrics.n == 2 and metrics.scores["correct"].n == 2
        nll.append(metrics.nll.mean if metrics.nll else None)
    example = Facts().examples("test")[1]
    *context, asked = encoder.prompt(example)
    lines = map(json.loads, (tmp_path / "a" / "predictions.jsonl").read_text().splitlines())
    (line,) = [x for x in lines if x["id"] == example.id]
    fed = line["tokens"] - (line["reason"] != "eos")  # the last one is sampled only
    raw = sum(len(s.ids) for s in context)
    held = {"full": raw, "nothing": 0, "compressive": 3 * len(context) + 1, "window": 5 + 1, "key_norm": 8 + 1}[scheme.name]
    fresh = 0 if scheme.slides else fed  # else each takes the place of a token of the context, which the question left behind
    assert line["peak_kv"] == held + len(asked.ids) + fresh
    if scheme.static:
        assert (nll[0] != nll[1]) == (scheme.name in ("full", "compressive"))
    else:
        assert nll == [None, None]


@pytest.mark.parametrize(
    ("key", "settings", "message"),
    [
        ("capped", {"cap": 0}, "cap must be at least 1"),
        ("capped", {"evicted": "lost"}, "'merged' or 'dropped'"),
        ("compressive", {"n_comp": 1}, "no comp tokens"),
        ("compressive", {"entries": 0}, "entries must be at least 1"),
        ("merge", {"average": "median"}, "'mean', 'exponential' or 'recency'"),
        ("merge", {"power": -1.0}, "power must be at least 0"),
    ],
)
def test_settings_that_cannot_be(key: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugins.make("schemes", key, **settings)
