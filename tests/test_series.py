"""Several problems in one sequence: each is found again and scored by its dataset, and a share is not tested as right or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from context_memory import cli, compose, records
from context_memory.annotate import annotate
from context_memory.boundaries.newline import Newline
from context_memory.data.base import Dataset
from context_memory.data.gsm8k import Gsm8k
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.metrics import Prediction, Versus, plain, versus
from context_memory.series import Joined, Series, join, split
from context_memory.text import Example

TALLY = Tally(max_steps=4, test=20)
PARTS = [Example("How many?", "1 + 1 = 2\n#### 2", id="a"), Example("And you?", "#### 5", id="b")]


def heads(target: str) -> list[str]:
    return [line.partition(":")[0] for line in target.split("\n") if line.startswith("Problem")]


def test_joined_by_hand() -> None:
    joined = join(PARTS)
    assert joined.prompt.split("\n")[1:] == ["1. How many?", "2. And you?"] and "in order" in joined.prompt
    assert joined.target == "Problem 1: 1 + 1 = 2\n#### 2\nProblem 2: #### 5"
    assert (joined.id, joined.cuts, joined.meta["parts"]) == ("a+b", (), tuple(PARTS))
    with pytest.raises(InputError, match="example 'c' has a context"):
        join([*PARTS, Example("Who?", "I", context=("It is late.",), id="c")])


@pytest.mark.parametrize("single", [TALLY, Gsm8k()], ids=["tally", "gsm8k"])
def test_gold_targets_are_right_and_missing_parts_are_wrong(single: Dataset) -> None:
    parts = list(TALLY.examples("test")[:3]) if single is TALLY else list(single.samples)
    series, joined = Series(single, 3), join(parts)
    assert series.score(joined, joined.target) | {"correct": 1.0, "all_correct": 1.0} == series.score(joined, joined.target)
    said = [f"Problem {i}: {p.target}" for i, p in enumerate(parts, 1)]
    for answer, right in (
        (said[:2], 2),
        ([said[0], said[2]], 2),  # a part left out in the middle does not shift the others
        ([said[2]], 1),
        ([said[0], said[1].replace("Problem 2", "Problem 3")], 1),  # another part's answer
        ([said[0].replace("Problem 1: ", ""), *said[1:]], 2),
        ([*said, "Problem 4: #### 99999"], 3),
        ([s.replace("Problem", "**Problem") for s in said], 3),
        ([s.replace(": ", ":**\n", 1).replace("Problem", "### **problem") for s in said], 3),
        ([""], 0),
    ):
        scores = series.score(joined, "\n".join(answer))
        assert (scores["correct"], scores["all_correct"]) == (pytest.approx(right / 3), float(right == 3)), answer


def test_other_scores_are_means_over_the_parts_that_have_them() -> None:
    parts = TALLY.examples("test")[:3]
    joined = join(parts)
    alone = [TALLY.score(p, p.target if i else "") for i, p in enumerate(parts)]
    scores = Series(TALLY, 3).score(joined, split_off_the_first(joined.target))
    assert scores["steps"] == pytest.approx(2 / 3)
    for name in {n for s in alone for n in s}:
        mine = [s[name] for s in alone if name in s]
        assert scores[name] == pytest.approx(sum(mine) / len(mine))


def split_off_the_first(target: str) -> str:
    return target[target.index("Problem 2") :]


def test_headings_rise() -> None:
    assert split("Problem 2: b\nProblem 1: a\n", 2) == ["", "b\nProblem 1: a"]
    assert split("So, Problem 1: a", 1) == [""]  # not at the beginning of a line


def test_a_split_is_cut_into_consecutive_problems() -> None:
    series, single = Series(TALLY, 3), TALLY.examples("test")
    joined = series.examples("test")
    assert isinstance(joined, Joined) and len(joined) == 6  # of 20: two are left over
    assert [p.id for e in joined for p in e.meta["parts"]] == [e.id for e in single[:18]]
    assert joined[-1] == joined[5] and joined[1:3] == [joined[1], joined[2]]
    with pytest.raises(IndexError):
        joined[6]
    assert len(Series(Tally(train=10**9), 4).examples("train")) == 25 * 10**7  # made when asked for
    with pytest.raises(ValueError, match=r"has 20 problems, fewer than data\.problems=21"):
        Series(TALLY, 21).examples("test")


def test_cuts_stand_where_they_stood() -> None:
    first, second = Example("a?", "1 + 1 = 2 \n#### 2", cuts=(10,)), Example("b?", "3 + 3 = 6\n6 + 1 = 7\n#### 7", cuts=(10, 20))
    joined = join([first, second])
    pieces = [joined.target[a:b] for a, b in zip((0, *joined.cuts), (*joined.cuts, None))]
    assert pieces == ["Problem 1: 1 + 1 = 2 ", "\n#### 2\n", "Problem 2: 3 + 3 = 6\n", "6 + 1 = 7\n", "#### 7"]
    said = [s for s in Encoder(toys.tokenizer(), Newline()).segments(joined) if s.target]
    assert [toys.tokenizer().decode(list(s.ids)) for s in said] == [*pieces[:-1], "#### 7<|end|>"]


def test_a_row_of_a_file_is_one_problem() -> None:
    found = annotate([join(TALLY.examples("test")[:2])], Encoder(toys.tokenizer(), Newline()).cuts)
    assert (found.rows, found.unsafe) == ([], 1)


def line(i: int, correct: float) -> Prediction:
    return Prediction(str(i), "p", "t", answer="a", scores={"correct": correct}, peak_reasoning_kv=5, peak_kv=9)


def against(row: list[float], full: list[float]) -> Versus:
    return versus([line(i, c) for i, c in enumerate(row)], [line(i, c) for i, c in enumerate(full)])


def test_shares_are_compared_by_their_mean_difference() -> None:
    v = against([0.5, 1.0, 0.0, 0.5], [1.0, 0.5, 0.5, 0.5])  # differences -0.5, 0.5, -0.5, 0: variance 0.6875 / 3
    assert v.difference is not None and v.difference.mean == -0.125
    half = 1.959964 * (0.6875 / 3 / 4) ** 0.5
    assert (v.difference.low, v.difference.high) == pytest.approx((-0.125 - half, -0.125 + half))
    assert (v.gained, v.lost, v.p) == (1, 2, None)
    lone = against([0.5], [1.0]).difference
    assert lone is not None and (lone.low, lone.high) == (-1.0, 1.0)
    # Control: the same items, right or wrong, have their exact test, and counting would have said something else.
    whole = against([0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    assert (whole.gained, whole.lost, whole.p) == (1, 2, 1.0) and whole.difference is not None and whole.difference.mean == -0.25
    json.dumps(plain(v), allow_nan=False)


def test_it_is_a_setting_of_every_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose.load(["data=tally", "data.problems=3", "data.test=12", "data.max_steps=3"])
    found = config.examples("test", 2)
    assert len(found) == 2 and heads(found[0].target) == ["Problem 1", "Problem 2", "Problem 3"]
    assert config.dataset().score(found[0], found[0].target)["all_correct"] == 1
    assert compose.load(["data=tally"]).dataset() == Tally()
    assert compose.load(["data=gsm8k", "data.problems=2"]).dataset() == Series(Gsm8k(), 2)
    with pytest.raises(UserError, match=r"data\.problems must be at least 1, got 0"):
        compose.load(["data.problems=0"])
    with pytest.raises(UserError, match=r"data=tally: the test split has 2 problems, fewer"):
        compose.load(["data=tally", "data.problems=3", "data.test=2"]).examples("test")
    toy = toys.folder(tmp_path / "toy")
    small = ("model.dtype=float32", "generation.max_new_tokens=12", "evaluation.max_samples=2", "--alone", "--run_id", "long")
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", f"model={toy}", "data=tally", "data.problems=2", "data.max_steps=3", "scheme=full", *small])
    assert not end.value.code, capsys.readouterr().err
    (record,) = records.gather([Path("result/tally/long")])
    assert len(record.lines) == 2 and all({"correct", "all_correct", "steps"} <= set(p.scores) for p in record.lines)
    assert record.lines[0].id == "tally/test/0+tally/test/1"
