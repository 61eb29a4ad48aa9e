"""Boundaries that depend on the model: read off its hidden states (`classifier`), or written by itself (`model`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from context_memory import cutting, head
from context_memory.adapter import Base
from context_memory.boundaries.classifier import FILE, Classifier
from context_memory.boundaries.model import Model
from context_memory.boundaries.newline import Newline
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.generate import Decoder, Settings
from context_memory.model import CompressedLM
from context_memory.pins.prompt import Prompt
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.testing import tiny_lm
from context_memory.text import Example

torch.set_num_threads(1)
FACTS = {"model": "tiny", "weights": "w", "task": ""}
EXAMPLES = [Example("Add 3 and 4.", "3 + 4 = 7\nso 7\n#### 7"), Example("Half of 9?", "9 / 2 = 4.5, that is it\n#### 4.5")]


def classifier(at: Path, size: int, tau: float = 0.5, **facts: str) -> Classifier:
    """A head of random numbers, in float64, that fires now and then."""
    torch.manual_seed(3)
    made = head.Head(size, 8).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=1.0)
    head.save(made, at / FILE, FACTS | facts)
    return Classifier(tau=tau, path=str(at), min_segment=1)


def lm_for(scheme: Scheme) -> CompressedLM:
    lm = tiny_lm("llama", scheme)
    lm.tokenizer = toys.tokenizer()
    lm.facts = Base("tiny", lm.n_layers, lm.base.config.hidden_size, lm.base.config.vocab_size, "w")
    return lm


@pytest.fixture
def lm() -> CompressedLM:
    return lm_for(Concat(n_comp=2))


def encoder_for(lm: CompressedLM, policy) -> Encoder:  # type: ignore[no-untyped-def]
    """One id a character, folded into the tiny vocabulary."""
    encoder = Encoder(lm.tokenizer, policy, [Prompt()], chat=False)
    size = lm.base.config.vocab_size
    encoder._answer = lambda e: (tuple(1 + ord(c) % (size - 1) for c in e.target), (0,), list(range(len(e.target))))  # type: ignore[method-assign]
    encoder.ids = lambda text: [1 + ord(c) % (size - 1) for c in text]  # type: ignore[method-assign]
    return encoder


def test_what_a_step_reads_is_what_the_head_says(tmp_path: Path) -> None:
    """The standardisation is folded into the first layer."""
    policy, hidden = classifier(tmp_path, 16), torch.randn(5, 16)
    made, _ = policy.trained
    made.mean.normal_()
    made.scale.uniform_(0.5, 2.0)
    with torch.inference_mode():
        assert policy.read(hidden) == pytest.approx(made(hidden).sigmoid().tolist(), abs=1e-6)
        assert policy.read(hidden[:1]) == pytest.approx(policy.read(hidden)[:1], abs=1e-6)


def test_cuts_found_at_once_are_those_of_a_stream(lm: CompressedLM, tmp_path: Path) -> None:
    """What the decode loop wrote and cut, cut again offline: the fixed point is the stream."""
    policy = classifier(tmp_path, lm.base.config.hidden_size)
    encoder = encoder_for(lm, policy)
    decoder = Decoder(lm, encoder, [encoder.prompt(e) for e in EXAMPLES], Settings(max_new_tokens=40))
    rows: list[list[list[int]]] = [[[]] for _ in EXAMPLES]
    for number, token in decoder.run():
        lane = next(row for row in decoder._live() if row.number == number)
        if lane.closed:
            rows[number].append([])
        rows[number][-1].append(token)
    for example, segments, out in zip(EXAMPLES, rows, decoder.outputs):
        assert out.compressions >= 2
        encoder._answer = lambda e, ids=tuple(out.ids): (ids, (0,), list(range(len(ids))))  # type: ignore[misc]
        offline = [list(s.ids) for s in cutting.segments(lm, encoder, example) if s.target]
        assert offline[: len(segments) - 1] == segments[:-1]
        states = cutting.answer_states(lm, encoder.uncut(example), len(out.ids))
        at_once = encoder.boundary.split(out.ids, encoder.piece, policy.read(states))
        if [list(s) for s in at_once][: len(segments) - 1] != segments[:-1]:
            break  # the control: with nothing compressed the states, and with them the cuts, are others
    else:
        pytest.fail("hidden states did not depend on what was compressed: this test could not fail.")


def test_scores_that_are_rounded_otherwise_every_time_are_cut_all_the_same(
    lm: CompressedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a threshold the last bit decides; in bfloat16 it differs from round to round, and cuts went to and fro for ever."""
    policy, rounds, stock = classifier(tmp_path, lm.base.config.hidden_size), [], cutting.answer_states

    def rounded(*args: Any, **kwargs: Any) -> torch.Tensor:
        rounds.append(1)
        states = stock(*args, **kwargs)
        assert len(rounds) <= len(states) + 1, "it goes on for ever"
        return states + 0.5 * torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(len(rounds)))

    monkeypatch.setattr(cutting, "answer_states", rounded)
    encoder = encoder_for(lm, policy)
    said = [[i for s in way if s.target for i in s.ids] for way in (cutting.segments(lm, encoder, EXAMPLES[0]), encoder.uncut(EXAMPLES[0]))]
    assert said[0] == said[1] and len(rounds) > 2


def test_without_compression_or_streaming_one_pass_of_the_frozen_model_decides(lm: CompressedLM, tmp_path: Path) -> None:
    policy = classifier(tmp_path, lm.base.config.hidden_size)
    encoder = encoder_for(lm, policy)
    found = cutting.segments(lm, encoder, EXAMPLES[0], streamed=False)
    scores = policy.read(cutting.answer_states(lm, encoder.uncut(EXAMPLES[0]), len(EXAMPLES[0].target), adapter=False))
    assert found == encoder.segments(EXAMPLES[0], {policy: scores})
    assert len([s for s in found if s.compress]) > 1
    full = lm_for(Full())
    assert not any(s.compress for s in cutting.segments(full, encoder_for(full, policy), EXAMPLES[0]))
    marked = replace(EXAMPLES[0], cuts=(9,))
    assert cutting.segments(lm, encoder, marked) == encoder.segments(marked)


def test_a_text_without_hidden_states_is_not_cut_in_silence(lm: CompressedLM, tmp_path: Path) -> None:
    encoder = encoder_for(lm, classifier(tmp_path, lm.base.config.hidden_size))
    with pytest.raises(InputError, match="hidden states"):
        encoder.segments(EXAMPLES[0])


@pytest.mark.parametrize("facts", [{"weights": "other"}, {"task": "other"}])
def test_a_classifier_of_another_model_is_refused(lm: CompressedLM, tmp_path: Path, facts: dict[str, str]) -> None:
    encoder = encoder_for(lm, classifier(tmp_path, lm.base.config.hidden_size, **facts))
    with pytest.raises(UserError, match="was trained on"):
        Decoder(lm, encoder, [encoder.prompt(EXAMPLES[0])], Settings())
    with pytest.raises(UserError, match="was trained on"):
        cutting.segments(lm, encoder, EXAMPLES[0])


@pytest.mark.parametrize("tau", [0.0, 1.0, -1, 7])
def test_tau_is_a_probability(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be above 0 and below 1"):
        Classifier(tau=tau)


def test_tau_decides_how_often(lm: CompressedLM, tmp_path: Path) -> None:
    size = lm.base.config.hidden_size
    counts = []
    for tau in (0.01, 0.5, 0.999999):
        encoder = encoder_for(lm, classifier(tmp_path, size, tau))
        counts.append(sum(s.compress for s in cutting.segments(lm, encoder, EXAMPLES[0])))
    assert counts[0] > counts[1] > counts[2]


def test_a_damaged_or_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing learnt at"):
        _ = Classifier(path=str(tmp_path)).trained
    with pytest.raises(UserError, match="no adapter is used that"):
        _ = Classifier().file
    classifier(tmp_path, 8)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-9])
    with pytest.raises(UserError, match="damaged"):
        _ = Classifier(path=str(tmp_path)).trained


def test_a_head_learns_and_is_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(600, 6) * 5 + 3
    y = x[:, 2] > 6  # a quarter
    made = head.fit(x, y, epochs=30, lr=5e-3, width=16)
    right = ((made(x) > 0) == y).float().mean()
    assert right > 0.95
    head.save(made, tmp_path / "h", FACTS)
    again, facts = head.load(tmp_path / "h")
    assert facts == FACTS and torch.equal(again(x), made(x))
    with pytest.raises(ValueError, match="both kinds"):
        head.fit(x, torch.zeros(600, dtype=torch.bool))


# ---- the model's own mark ----------------------------------------------------------------------------------------------------


def test_the_mark_stands_where_the_teacher_cuts_and_is_no_text() -> None:
    words = toys.tokenizer()
    encoder = Encoder(words, Model(token="<|system|>", teacher="newline"))
    plain = Encoder(words, Newline())
    example = EXAMPLES[0]
    steps = [s for s in encoder.segments(example) if s.target]
    mark = words.convert_tokens_to_ids("<|system|>")
    assert [s.ids[:-1] for s in steps[:-1]] == [s.ids for s in plain.segments(example) if s.target][:-1]
    assert all(s.ids[-1] == mark and s.loss[-1] for s in steps[:-1]) and len(steps) == 3
    said = [i for s in steps for i in s.ids]
    assert encoder.boundary.split(said, encoder.piece)[:-1] == [s.ids for s in steps[:-1]]
    assert encoder.text(said) == example.target
    assert encoder.cuts(example) == plain.cuts(example)


def test_a_segment_with_its_mark_is_within_max_segment() -> None:
    encoder = Encoder(toys.tokenizer(), Model(token="<|system|>", teacher="newline", max_segment=6))
    steps = [s for s in encoder.segments(EXAMPLES[0]) if s.target]
    assert max(len(s.ids) for s in steps[:-1]) == 6
    said = [i for s in steps for i in s.ids]
    assert [s.ids for s in steps[:-1]] == encoder.boundary.split(said, encoder.piece)[: len(steps) - 1]


def test_a_token_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"special tokens here: <\|user\|>"):
        Encoder(toys.tokenizer(), Model())
    with pytest.raises(ValueError, match="teacher"):
        Model(teacher="classifier")
