"""Numbers that a memory gives back: what is asked of it is what one pass over the same tokens says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import loading, output, records
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.evaluate import Settings, evaluate
from context_memory.footprint import as_fed
from context_memory.model import CompressedLM
from context_memory.plan import layout
from context_memory.plugins import make
from context_memory.recall import Recalled, recall
from context_memory.text import Example, Segment

torch.set_num_threads(1)
EXAMPLE = Example("7 bags of 4?", "")
ANSWERS = ("7 * 4 = 28\nSo 28 + 27 = 55.\nAgain 27 + 28 + 7 = 62\n#### 62", "3 and 1\n\n1 1 3\na 1\nbc 1\nSo 1\n#### 1\n", "#### 7", "")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def adapter(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.adapters(tmp_path_factory.mktemp("adapters"), toy, **{"boundary": "every", "boundary.n": 6})[1]


def model(toy: Path, adapter: Path | None = None) -> tuple[CompressedLM, Encoder]:
    """In float64, and fond of the figure 1."""
    lm = loading.load(str(toy), adapter, scheme=None if adapter else make("schemes", "full"), dtype="float64")
    encoder = Encoder(lm.encoder.tokenizer, make("boundaries", "every", n=6), [make("pins", "results", budget=1)])
    with torch.no_grad():
        lm.base.get_output_embeddings().weight[encoder.ids("1")[0]] *= 6
    return lm, encoder


def in_one_pass(lm: CompressedLM, encoder: Encoder, answer: str, line: str) -> list[Recalled]:
    """The figures of one line that is begun again after the answer."""
    said = as_fed(encoder.segments(replace(EXAMPLE, target=answer)), encoder)
    ids = tuple(encoder.ids("\n" + line))
    *closed, last = said if not said[-1].compress else [*said, Segment((), compress=False, target=True)]
    plan = layout([*closed, Segment((*last.ids, *ids), compress=False, target=True)], lm.scheme, lm.positions)
    with torch.no_grad():
        raw = lm.hidden(plan)[plan.tokens.raw][-len(ids) - 1 :]
        p = lm.logits(raw).softmax(-1)[:-1]
    out = []
    for number in re.finditer(r"\d+", line):
        at = [1 + i for i in range(*number.span())]
        chance = math.prod(float(p[t, ids[t]]) for t in at)
        out.append(Recalled(number[0], all(int(p[t].argmax()) == ids[t] for t in at), chance))
    return out


def test_the_memory_is_asked_and_nothing_else(toy: Path, adapter: Path) -> None:
    lm, encoder = model(toy, adapter)
    found = recall(lm, encoder, [EXAMPLE] * len(ANSWERS), ANSWERS)
    assert [[n.number for n in answer] for answer in found] == [["28", "27", "28", "62"], ["1", "3", "1", "1", "1", "1"], [], []]
    lines = {"So 28 + 27 = 55.": (0,), "Again 27 + 28 + 7 = 62": (0, 1), "#### 62": (0,)}
    wanted = [in_one_pass(lm, encoder, ANSWERS[0], line)[i] for line, places in lines.items() for i in places]
    for mine, theirs in zip(found[0], wanted, strict=True):
        assert (mine.number, mine.known) == (theirs.number, theirs.known)
        assert mine.p == pytest.approx(theirs.p, rel=1e-6)
    assert {n.known for answer in found for n in answer} == {True, False}

    whole = recall(*model(toy), [EXAMPLE], ANSWERS[:1])[0]
    assert all(a.number == b.number and a.p != pytest.approx(b.p, rel=1e-3) for a, b in zip(whole, found[0], strict=True))


def test_it_is_a_score_of_every_answer_that_has_numbers(toy: Path, adapter: Path, tmp_path: Path) -> None:
    lm, encoder = model(toy, adapter)
    with torch.no_grad():
        lm.base.get_output_embeddings().weight[encoder.ids("\n")[0]] *= 4
    dataset = make("data", "tally")
    settings = Settings(decode=output.Settings(max_new_tokens=60, temperature=1.0, seed=1), likelihood=False, recall=True)
    metrics = evaluate(lm, encoder, dataset, dataset.examples("test")[:6], settings, tmp_path)
    lines = records.read(tmp_path).lines
    asked = [line for line in lines if line.recall]
    assert asked, "no answer had a number in an earlier line"
    for line in lines:
        assert ("recall" in line.scores) == bool(line.recall)
    for line in asked:
        assert line.scores["recall"] == sum(known for _, known, _ in line.recall) / len(line.recall)
    assert metrics.scores["recall"].n == len(asked)
    with pytest.raises(InputError, match="recall looks at answers and generate is off"):
        Settings(recall=True, generate=False)
    with pytest.raises(UserError, match="recall"):
        evaluate(lm, encoder, dataset, dataset.examples("test")[:6], replace(settings, recall=False), tmp_path)


def test_a_number_of_the_question_is_known_whatever_its_commas(toy: Path, adapter: Path) -> None:
    lm, encoder = model(toy, adapter)
    answer = "1200 + 7 = 1207\nSo 1,200 and 1,207.\n#### 1207"
    (found,) = recall(lm, encoder, [Example("A car costs $1,200.", "")], [answer])
    assert [n.number for n in found] == ["1207", "1207"]
