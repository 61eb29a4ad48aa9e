"""Items with a context: read after a memory as in one pass, a context written once for all its questions, options, depths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import plugins, reading
from context_memory.data.icl import Icl
from context_memory.depths import at_depths, depth_of
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.evaluate import Settings, evaluate
from context_memory.metrics import Prediction, summarise, versus
from context_memory.model import CompressedLM
from context_memory.output import Settings as Decode
from context_memory.plan import IGNORE, layout
from context_memory.plots import plots
from context_memory.records import METRICS, Record, gather
from context_memory.report import by_depth, join
from context_memory.text import Example

DEMOS = ("I loved it.\ngood\n", "Dull.\nbad\n", "Never again, I say.\nbad\n")
ITEMS = [
    Example(q, a, DEMOS, learn=(12, 6, 20), options=("good", "bad", "so so"), id=str(i), meta={"task": "films"})
    for i, (q, a) in enumerate([("A delight.", "good"), ("A waste of time.", "bad"), ("Hm.", "so so")])
]
BOOK = Example("", " and on.", ("It went", " on and on"), learn=(0, 0), running=True, id="book")
SCHEMES = ("concat", "merge", "gist", "full", "nothing")


@pytest.fixture(scope="module")
def words():  # type: ignore[no-untyped-def]
    return toys.tokenizer()


def lm_of(scheme: str, words) -> tuple[CompressedLM, Encoder]:  # type: ignore[no-untyped-def]
    """A tiny model (whose vocabulary of 64 is stretched to the toy's) and an encoder for turns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    base = LlamaForCausalLM(config).to(torch.float64)
    for p in base.parameters():
        if p.ndim == 2:
            p.data.normal_(std=0.3)
    lm = CompressedLM(base, words, plugins.make("schemes", scheme)).eval()  # type: ignore[arg-type]
    return lm, Encoder(words, plugins.make("boundaries", "turn"), [plugins.make("pins", "sink")], chat=False)  # type: ignore[arg-type, list-item]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_read_after_a_memory_is_one_pass(scheme: str, words) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of(scheme, words)
    for example in (*ITEMS, replace(ITEMS[0], context=DEMOS[:1], learn=(12,)), BOOK):
        (found,) = reading.read(lm, encoder, [example], batch_size=2)
        for nll, text in zip(found.nll, example.options or (example.target,), strict=True):
            segments = encoder.segments(replace(example, target=text))
            if not example.running:  # the token that ends the turn is not counted
                segments[-1] = replace(segments[-1], loss=(*segments[-1].loss[:-1], False))
            ((whole, _),) = reading.likelihoods(lm, [reading.target_plan(lm, segments)])
            assert nll == pytest.approx(whole, abs=1e-9)


def test_a_batch_reads_as_items_alone_and_what_is_held_is_counted(words) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("concat", words)
    other = replace(ITEMS[1], context=DEMOS[:2], learn=(12, 6), id="other")
    together = reading.read(lm, encoder, [*ITEMS, other, BOOK], batch_size=4)
    for item, found in zip([*ITEMS, other, BOOK], together, strict=True):
        (alone,) = reading.read(lm, encoder, [item], batch_size=1)
        assert found.nll == pytest.approx(alone.nll, abs=1e-9) and found.entries == alone.entries
    assert together[0].entries == 1 + 3 * 2 and together[3].entries == 1 + 2 * 2  # the sink, two comp tokens a segment
    assert together[0].context_tokens == sum(map(len, DEMOS)) + 3
    full = reading.read(*lm_of("full", words), [ITEMS[0]], 1)[0]
    assert full.entries == full.context_tokens and full.nbytes == full.entries * lm.kv_bytes
    nothing = reading.read(*lm_of("nothing", words), ITEMS, 9)
    shuffled = reading.read(*lm_of("nothing", words), [replace(i, context=DEMOS[::-1]) for i in ITEMS], 9)
    assert nothing[0].entries == 1  # the sink, which all rows share
    assert together[0].nll != pytest.approx(nothing[0].nll, abs=1e-3)  # control: the memory is read
    assert shuffled[0].choice == nothing[0].choice


def test_a_context_and_a_question_are_read_once(words, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """However many questions and options there are."""
    lm, encoder = lm_of("concat", words)
    read: list[int] = []
    hidden = CompressedLM.hidden
    monkeypatch.setattr(CompressedLM, "hidden", lambda self, plan, *rest: (read.append(plan.real), hidden(self, plan, *rest))[1])
    reading.read(lm, encoder, ITEMS, batch_size=2)
    told = sum(len(s.ids) for s in encoder.prompt(ITEMS[0])[: len(DEMOS)])
    asked = sum(len(s.ids) for item in ITEMS for s in encoder.prompt(item)[len(DEMOS) :])
    options = sum(len(encoder.answer(replace(item, target=text))) for item in ITEMS for text in item.options)
    assert sum(read) == told + asked + options


def test_what_is_learnt_of_a_context(words) -> None:  # type: ignore[no-untyped-def]
    _, encoder = lm_of("concat", words)
    segments = encoder.segments(ITEMS[0])
    learnt = ["".join(encoder.piece(i) for i, x in zip(s.ids, s.loss or [False] * len(s.ids)) if x) for s in segments]
    assert learnt == ["good\n\n", "bad\n\n", "bad\n\n", "", "good<|end|>"]
    assert not any(any(s.loss) for s in encoder.prompt(replace(ITEMS[0], learn=())))
    plan = layout(segments, plugins.make("schemes", "concat"), supervise="memory")  # type: ignore[arg-type]
    assert int((plan.labels != IGNORE).sum()) == len("bad\n\nbad\n\ngood") + 1  # the first segment reaches no comp token
    book = encoder.segments(BOOK)
    assert "".join(encoder.piece(i) for s in book for i in s.ids) == "It went on and on and on."


def test_the_likeliest_option_a_token() -> None:
    assert reading.Reading((4.0, 3.0, 6.0), (4, 1, 2)).choice == 0
    assert reading.Reading((4.0, 3.0, 6.0), (1, 1, 1)).choice == 1


def test_chosen_answers_are_evaluated(words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("concat", words)
    found = evaluate(lm, encoder, Icl(), at_depths(ITEMS, [1, 3]), Settings(batch_size=4), tmp_path / "a")
    again = evaluate(lm, encoder, Icl(), at_depths(ITEMS, [1, 3]), Settings(batch_size=1), tmp_path / "b")
    assert found.n == 6 and found.nll and found.memory_kv and found.tokens == 0 and found.peak_reasoning_kv is None
    assert found.memory_kv.mean == pytest.approx((3 + 7) / 2)
    assert found.scores == again.scores and found.nll.mean == pytest.approx(again.nll.mean, abs=1e-9)


@pytest.mark.parametrize(
    "changed",
    [{"context": DEMOS[:2], "learn": (12, 6)}, {"options": ("good", "bad", "so so", "?")}, {"learn": ()}, {"turns": True}, {"meta": {}}],
    ids=str,
)
def test_answers_to_another_example_are_not_reused(changed: dict, words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def, type-arg]
    lm, encoder = lm_of("full", words)
    settings = Settings(likelihood=False)
    evaluate(lm, encoder, Icl(), ITEMS, settings, tmp_path)
    evaluate(lm, encoder, Icl(), ITEMS, settings, tmp_path)  # control: the same items are
    with pytest.raises(UserError, match="item '0', which has another context or other options now"):
        evaluate(lm, encoder, Icl(), [replace(i, **changed) for i in ITEMS], settings, tmp_path)


def test_lines_that_do_not_say_what_was_asked(words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """An earlier version wrote prompt and target alone: that is the whole of an item without context and options."""
    lm, encoder = lm_of("full", words)
    settings = Settings(likelihood=False, decode=Decode(max_new_tokens=3))
    plain = [replace(i, context=(), learn=(), options=()) for i in ITEMS]
    for folder, items in (("plain", plain), ("context", ITEMS)):
        evaluate(lm, encoder, Icl(), items, settings, tmp_path / folder)
        file = tmp_path / folder / "predictions.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "asked"}) + "\n" for line in lines))
    evaluate(lm, encoder, Icl(), plain, settings, tmp_path / "plain")
    with pytest.raises(UserError, match="item '0', which does not say after which context"):
        evaluate(lm, encoder, Icl(), ITEMS, settings, tmp_path / "context")


def test_rows_after_two_contexts_are_two_rows(words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("full", words)
    for folder, items in (("a", ITEMS), ("b", [replace(i, context=DEMOS[:1], learn=(12,)) for i in ITEMS]), ("c", ITEMS)):
        evaluate(lm, encoder, Icl(), items, Settings(likelihood=False), tmp_path / folder)
    assert len(gather([tmp_path])) == 2 and len(list(tmp_path.rglob(METRICS))) == 3  # "c" is "a" once more


def test_options_that_cannot_be_chosen_among(words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("full", words)
    with pytest.raises(InputError, match="option '' of example '0' has no tokens"):
        reading.read(lm, encoder, [replace(ITEMS[0], options=("good", ""))], 2)
    with pytest.raises(UserError, match=r"item '0': the target 'good' must be one of its options, \['bad', 'so so'\]"):
        evaluate(lm, encoder, Icl(), [replace(ITEMS[0], options=("bad", "so so"))], Settings(), tmp_path)


def test_depths_ask_the_same_of_less() -> None:
    short = replace(ITEMS[2], context=DEMOS[:1], learn=(12,), id="short")
    found = at_depths([*ITEMS, short], [3, 1])
    assert [e.id for e in found] == ["0@1", "1@1", "2@1", "0@3", "1@3", "2@3"]  # the short one is asked at no depth
    assert found[0].context == DEMOS[-1:] and found[0].learn == (20,) and found[3].context == DEMOS
    assert [depth_of(i) for i in ("a@12", "a", "a@b")] == [12, None, None]
    for depths, message in (([4], "longest has 3"), ([-1, 2], "0 or more"), ([1, 1], "different")):
        with pytest.raises(UserError, match=message):
            at_depths(ITEMS, depths)


def test_a_table_has_a_row_for_every_depth_and_shares_of_both_gaps(tmp_path: Path) -> None:
    def lines(rights: dict[int, list[int]], nll: float) -> tuple[Prediction, ...]:
        return tuple(
            Prediction(f"{i}@{t}", "p", "t", "a", {"correct": float(x)}, "chosen", nll=nll, nll_tokens=2, memory_kv=t, context_tokens=4 * t)
            for t, row in rights.items()
            for i, x in enumerate(row)
        )

    full = lines({1: [1, 0, 0, 1], 2: [1, 1, 1, 1]}, 1.0)
    mine, nothing = lines({1: [1, 0, 0, 0], 2: [1, 1, 1, 0]}, 2.0), lines({1: [0, 0, 0, 0], 2: [0, 1, 0, 0]}, 5.0)
    record = Record("mine", Path(), mine, {"scheme": {"name": "concat"}}, {}, 1)
    assert [(r.name, len(r.lines)) for r in by_depth([record])] == [("mine, t=1", 4), ("mine, t=2", 4)]
    same = {"model": 0, "task": 0}
    where = [replace(record, name=n, lines=x, settings={"scheme": {"name": n}, **same}) for n, x in (("full", full), ("mine", mine))]
    assert [p.name for p in plots(join(where), tmp_path)] == ["depth.png"] and (tmp_path / "depth.png").stat().st_size > 5000
    last = versus(mine[4:], full[4:], nothing[4:])
    assert last.accuracy_gap_closed and last.accuracy_gap_closed.mean == pytest.approx(2 / 3)
    assert last.gap_closed and last.gap_closed.mean == pytest.approx(3 / 4)
    m = summarise(mine)
    assert m.memory_kv and m.memory_kv.mean / m.context_tokens == 0.25
    assert versus(nothing, nothing, nothing).accuracy_gap_closed is None


def test_what_is_written_by_hand_is_what_an_example_writes(words) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("concat", words)
    lm.__dict__["encoder"] = encoder
    mine, theirs = lm.memory(), lm.memory()
    for text, segment in zip(DEMOS, encoder.prompt(ITEMS[0])):
        mine.write(text)
        theirs.run([[segment]])
    assert mine.tokens == theirs.tokens == 1 + 3 * 2  # the sink is kept by the rule that the encoder has
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(mine.layers, theirs.layers))


def test_a_context_with_turns_is_not_the_one_without(words) -> None:  # type: ignore[no-untyped-def]
    lm, encoder = lm_of("concat", words)
    encoder = Encoder(words, encoder.boundary, encoder.pins, chat=True)
    plain, turns = ITEMS[0], replace(ITEMS[0], turns=True)
    together = reading.read(lm, encoder, [plain, turns], 8)
    alone = [reading.read(lm, encoder, [e], 8)[0] for e in (plain, turns)]
    assert [r.context_tokens for r in together] == [r.context_tokens for r in alone]
    assert together[0].context_tokens != together[1].context_tokens
