"""Numbers of known predictions by hand; an evaluation resumes, mixes no settings, and notices when nothing was compressed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

import toys
from context_memory import generate, metrics, plugins, records
from context_memory.boundaries.base import Boundary
from context_memory.data.base import Dataset
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.evaluate import Settings, _must_fire, evaluate
from context_memory.footprint import peak_if_said
from context_memory.loading import load
from context_memory.metrics import Prediction, summarise, versus
from context_memory.model import CompressedLM
from context_memory.plan import layout
from context_memory.reading import likelihoods
from context_memory.testing import tiny_lm, tiny_lms
from context_memory.text import Example, Segment


def scheme(name: str, **settings: object):  # type: ignore[no-untyped-def]
    return plugins.make("schemes", name, **settings)


# ---- numbers by hand --------------------------------------------------------------------------------------------------------


def line(i: int, correct: float, peak: int = 10, nll: float = 2.0, **more: object) -> Prediction:
    base = Prediction(
        str(i), "p", "t", answer="a", scores={"correct": correct}, reason="eos", compressions=2, tokens=20, peak_kv=peak + 5,
        peak_reasoning_kv=peak, mean_kv=8.0, mean_reasoning_kv=4.0, peak_kv_bytes=100 * peak, seconds=2.0, target_peak=5,
        target_tokens=20, nll=nll, nll_tokens=4,
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def test_a_row_by_itself() -> None:
    m = summarise([line(0, 1, peak=10), line(1, 0, peak=14, nll=6.0, reason="length")], kv_bytes=3)
    assert (m.n, m.scores["correct"].mean, m.nll_tokens) == (2, 0.5, 8)
    assert m.nll is not None and m.nll.mean == 1.0
    assert m.peak_reasoning_kv is not None and m.peak_reasoning_kv.mean == 12 and m.peak_reasoning_bytes == 36
    assert (m.mean_kv_bytes, m.mean_reasoning_bytes) == (24, 12)
    assert (m.peak_kv, m.peak_kv_bytes, m.max_kv_bytes, m.compressions) == (17, 1200, 1400, 2)
    assert (m.tokens, m.tokens_per_second, m.equal_length_ratio, m.cut_off) == (20, 10, 0.25, 0.5)
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise([])


def test_a_row_against_full_and_nothing() -> None:
    full = [line(i, correct, peak=20, nll=1.0) for i, correct in enumerate((1, 1, 1, 0, 1))]
    row = [line(i, correct, peak=peak, nll=2.0) for i, (correct, peak) in enumerate(((1, 5), (0, 7), (0, 6), (1, 6)))]
    nothing = [line(i, 0, nll=5.0) for i in range(5)]
    v = versus(row, full, nothing)
    assert (v.n, v.gained, v.lost, v.p) == (4, 1, 2, 1.0)
    assert v.difference is not None and v.difference.mean == -0.25
    assert v.kv_ratio == 24 / 80 and v.kv_ratio_whole == 44 / 100
    assert v.nll_difference is not None and v.nll_difference.mean == 0.25
    assert v.gap_closed is not None and v.gap_closed.mean == pytest.approx(0.75)
    assert versus(row, full).gap_closed is None
    with pytest.raises(ValueError, match="no item in common"):
        versus(row, [line(0, 1, prompt="another")])


def test_scores_that_only_some_items_have() -> None:
    rows = [
        line(0, 1, scores={"correct": 1.0, "distance_10": 0.5, "distance_2": 1.0}),
        line(1, 0, scores={"correct": 0.0, "distance_2": 0.0}),
    ]
    m = summarise(rows)
    assert list(m.scores) == ["correct", "distance_2", "distance_10"]
    assert (m.scores["distance_2"].n, m.scores["distance_10"].n) == (2, 1)
    json.dumps(metrics.plain(m), allow_nan=False)


# ---- the weight of a target -------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer without text; nothing ends an answer."""

    eos_token_id, eos_token, bos_token, bos_token_id, chat_template = None, "", "", None, None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 63 for c in text]}

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(32 + i) for i in ids)


@pytest.mark.parametrize(("family", "kind"), [pytest.param(f, s, id=str(s)) for f, s in tiny_lms(["llama"]) if s.max_steps is None])
@pytest.mark.parametrize("closes", [False, True])
def test_peak_of_a_text_is_what_the_decode_loop_measures(family: str, kind, closes: bool) -> None:  # type: ignore[no-untyped-def]
    lm = tiny_lm(family, kind)
    encoder = Encoder(Letters(), plugins.make("boundaries", "every", n=4))  # type: ignore[arg-type]
    asked = [
        Segment((5, 9, 3), pins=(True, False, True)),
        Segment((7, 7, 8, 2), compress=closes, pins=(False, True, False, False)),
    ]
    for tokens in (3, 4, 5, 9, 10):
        (out,) = generate.generate(lm, encoder, [asked], generate.Settings(max_new_tokens=tokens))
        fed = out.ids[:-1]  # the last one is sampled only
        steps = [fed[i : i + 4] for i in range(0, len(fed), 4)]
        if not steps:
            continue
        said = [Segment(tuple(s), target=True, compress=i < len(steps) - 1) for i, s in enumerate(steps)]
        if not closes:  # the question's last part and the first step are one segment
            first = Segment(
                (*asked[1].ids, *said[0].ids),
                pins=(*asked[1].pins, *[False] * len(said[0].ids)),
                compress=said[0].compress,
                target=True,
            )
            said = [first, *said[1:]]
        plan = layout([asked[0], *asked[1:] * closes, *said], kind)
        held = sum(sum(s.pins) for s in asked) if kind.hides else 7
        assert out.peak_kv_tokens >= out.peak_reasoning_kv_tokens + held * (not kind.hides)
        assert peak_if_said(plan, kind, 7) == out.peak_reasoning_kv_tokens


# ---- running ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo(Dataset):
    """Say it again, in short lines."""

    samples: ClassVar[tuple[Example, ...]] = ()

    def examples(self, split: str) -> Sequence[Example]:
        words = ("one two", "three", "four five six", "seven", "eight nine", "ten", "eleven twelve")
        return [Example(f"Say {w}.", "\n".join(w.split()) + "\n!", id=f"echo/{i}") for i, w in enumerate(words)]

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(answer == example.target), "length": min(1.0, len(answer) / 40)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def run(toy: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Evaluate a scheme without an adapter on the first n items."""

    def run(kind: str, boundary: Boundary | str = "every", n: int = 7, batch_size: int = 3, out: str = "out", **options: object):  # type: ignore[no-untyped-def]
        lm = load(str(toy), scheme=scheme(kind), dtype=torch.float64)
        policy = (
            plugins.make("boundaries", boundary, **({"n": 6} if boundary == "every" else {})) if isinstance(boundary, str) else boundary
        )
        fresh = bool(options.pop("fresh", False))
        settings = Settings(generate.Settings(max_new_tokens=20), batch_size, **options)  # type: ignore[arg-type]
        found = evaluate(lm, Encoder(lm.tokenizer, policy), Echo(), Echo().examples("test")[:n], settings, tmp_path / out, fresh=fresh)  # type: ignore[arg-type]
        return found, records.read(tmp_path / out)

    return run


def test_full_is_the_stock_model(run, toy: Path) -> None:  # type: ignore[no-untyped-def]
    """The row `full` answers as transformers' own `generate` does, and its likelihood is that of the plain model."""
    found, record = run("full")
    stock = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float64)
    words = toys.tokenizer()
    total = 0.0
    for p in record.lines:
        ids = words(f"<|user|>{p.prompt}<|end|><|assistant|>", return_tensors="pt")["input_ids"]
        out = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert words.decode(out, skip_special_tokens=True) == p.answer
        assert p.tokens < 2 or p.peak_kv == p.prompt_tokens + p.peak_reasoning_kv
        assert p.compressions == 0
        whole = torch.cat([ids, words(p.target + "<|end|>", return_tensors="pt")["input_ids"]], 1)
        with torch.no_grad():
            scores = stock(whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        nll = -scores.gather(1, whole[0, ids.shape[1] :, None]).sum()
        assert (p.nll, p.nll_tokens) == (pytest.approx(float(nll)), len(p.target) + 1)
        total += float(nll)
    assert found.nll is not None and found.nll.mean == pytest.approx(total / found.nll_tokens)


def test_batches_and_order_change_nothing(run) -> None:  # type: ignore[no-untyped-def]
    _, one = run("nothing", batch_size=1, out="one")
    _, all_ = run("nothing", batch_size=7, out="all")
    assert [p.id for p in one.lines] == [f"echo/{i}" for i in range(7)]
    for a, b in zip(one.lines, all_.lines):
        assert (a.answer, a.peak_reasoning_kv, a.compressions) == (b.answer, b.peak_reasoning_kv, b.compressions)
        assert a.nll == pytest.approx(b.nll)


def test_resume_keeps_what_is_done(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    whole, _ = run("nothing", out="whole")
    add, asked = records.Store.add, []

    def dies(self: records.Store, lines: Sequence[Prediction]) -> None:
        add(self, lines)
        asked.append(len(lines))
        if len(asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(records.Store, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run("nothing")
    partial = tmp_path / "out" / records.PARTIAL
    assert len(partial.read_text().splitlines()) == 6 and not (tmp_path / "out" / records.METRICS).exists()
    with partial.open("ab") as out:
        out.write(b'{"id": "echo/6", "prompt": "\xe2')  # cut off within a character
    again, _ = run("nothing")
    assert asked == [3, 3, 1] and not partial.exists()
    assert again.scores == whole.scores and again.nll.mean == pytest.approx(whole.nll.mean)
    run("nothing", n=7)
    assert asked == [3, 3, 1]  # complete: nothing is run again


def test_more_items_of_the_same_data_are_added(run) -> None:  # type: ignore[no-untyped-def]
    few, _ = run("nothing", n=3)
    more, record = run("nothing", n=7)
    assert (few.n, more.n, len(record.lines)) == (3, 7, 7)
    with pytest.raises(UserError, match=r"holds item 'echo/\d', which is not asked for now .*--fresh"):
        run("nothing", n=3)
    assert run("nothing", n=3, fresh=True)[0].n == 3


def test_settings_are_not_mixed(run) -> None:  # type: ignore[no-untyped-def]
    run("nothing")
    with pytest.raises(UserError, match=r"holds an evaluation with scheme = .*nothing.*, got .*full.*another run_id"):
        run("full")
    with pytest.raises(UserError, match="with decode = "):
        run("nothing", generate=False)


def test_an_evaluation_in_which_nothing_fired_is_an_error(run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"not one of 2 answers was compressed, although scheme 'nothing' forgets"):
        run("nothing", boundary="newline", n=2)  # a random model writes no lines; the targets have some
    with pytest.raises(UserError, match=r"hides no token of any of the 2 targets"):
        run("nothing", boundary=plugins.make("boundaries", "every", n=200), n=2, out="hides", generate=False)
    assert run("full", boundary="newline", n=2, out="full")[0].n == 2  # control: full does not forget


def test_answers_that_are_longer_than_the_targets_may_be_what_is_compressed() -> None:
    """A window as long as the few targets that were asked for hides nothing of them."""
    items, scheme = [SimpleNamespace(has_boundary=True, known=True, hides=False)], plugins.make("schemes", "window")
    said = Prediction("", "", "", answer="a", compressions=3, tokens=90, peak_reasoning_kv=64)
    _must_fire(scheme, items, [said])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="hides no token of any of the 1 targets"):
        _must_fire(scheme, items, [replace(said, tokens=60, peak_reasoning_kv=59)])  # type: ignore[arg-type]


def test_likelihood_alone(run) -> None:  # type: ignore[no-untyped-def]
    found, record = run("nothing", generate=False)
    assert found.scores == {} and found.nll and record.lines[0].answer is None
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Settings(generate=False, likelihood=False)


def test_likelihood_depends_on_what_is_hidden(toy: Path) -> None:
    lms = [load(str(toy), scheme=scheme(k), dtype=torch.float64) for k in ("full", "nothing")]
    encoder = Encoder(lms[0].tokenizer, plugins.make("boundaries", "newline"))  # type: ignore[arg-type]
    segments = encoder.segments(Echo().examples("test")[2])

    def nll(lm: CompressedLM) -> float:
        return likelihoods(lm, [layout(segments, lm.scheme, lm.positions)])[0][0]

    assert abs(nll(lms[0]) - nll(lms[1])) > 1e-3


def test_an_item_longer_than_the_model_is_named(toy: Path, tmp_path: Path) -> None:
    lm = load(str(toy), scheme=scheme("full"))
    long = Example("x" * 5000, "y", id="echo/long")
    encoder = Encoder(lm.tokenizer, plugins.make("boundaries", "newline"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"item 'echo/long' ends at position 50\d\d and the model has 4096"):
        evaluate(lm, encoder, Echo(), [long], Settings(), tmp_path)


def test_a_batch_that_does_not_fit_says_what_to_lower(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("context_memory.encoder_generate.decoder", full)
    with pytest.raises(UserError, match=r"a batch of 3 does not fit this device; lower evaluation\.batch_size"):
        run("full")
