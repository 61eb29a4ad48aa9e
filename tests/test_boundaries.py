"""Boundaries, over the open folder: what is cut offline is what a stream would cut, and nothing is lost."""

from __future__ import annotations

import random
import re

import pytest

from context_memory import plugins
from context_memory.boundaries.base import Boundary, Step
from context_memory.boundaries.every import Every
from context_memory.boundaries.newline import Newline
from context_memory.boundaries.random import Random
from context_memory.boundaries.rules import Rules
from context_memory.boundaries.sentence import Sentence
from context_memory.boundaries.turn import Turn

PIECES = ("a", " bc", ".", "\n", ".\n\n", "\n\n\n", " ", "####", "<COMP>", "\r\n", "7", "é")


def boundary(key: str) -> Boundary:
    return plugins.make("boundaries", key, **({"token": "####"} if key == "model" else {}))  # type: ignore[return-value]


def scores(policy: Boundary, length: int) -> list[float]:
    """What hidden states might say; nothing for policies that do not ask."""
    return [random.Random(i).random() for i in range(length)] if policy.needs_hidden else []


def stream(policy: Boundary, ids: list[int]) -> list[tuple[int, ...]]:
    """A run that sees one token at a time and knows nothing of what comes."""
    done: list[tuple[int, ...]] = []
    now: list[int] = []
    read = iter(scores(policy, len(ids)))
    for token in ids:
        now.append(token)
        if policy.fires(Step(now, "".join(PIECES[i] for i in now), PIECES[token], next(read, None))):
            done.append(tuple(now))
            now = []
    return done + ([tuple(now)] if now else [])


def random_ids(seed: int, length: int = 700) -> list[int]:
    return random.Random(seed).choices(range(len(PIECES)), k=length)


@pytest.mark.parametrize("key", plugins.keys("boundaries"))
@pytest.mark.parametrize("seed", range(5))
def test_offline_cuts_are_streaming_cuts_and_nothing_is_lost(key: str, seed: int) -> None:
    ids = random_ids(seed)
    segments = boundary(key).split(ids, PIECES.__getitem__, scores(boundary(key), len(ids)))
    assert segments == stream(boundary(key), ids)
    assert key == "turn" or len(segments) > 1
    assert [token for segment in segments for token in segment] == ids
    assert all(segments)
    assert boundary(key).split([], PIECES.__getitem__) == []


@pytest.mark.parametrize("key", plugins.keys("boundaries"))
def test_no_segment_is_longer_than_it_may_be(key: str) -> None:
    policy = boundary(key)
    lengths = [len(s) for s in policy.split([0] * 1000, PIECES.__getitem__, [0.0] * 1000 if policy.needs_hidden else [])]
    assert max(lengths) <= policy.max_segment


def test_control_another_policy_cuts_elsewhere() -> None:
    ids = random_ids(0)
    assert Newline().split(ids, PIECES.__getitem__) != stream(Every(n=7), ids)


def test_newline_ends_with_a_token_that_holds_one() -> None:
    ids = [0, 3, 3, 1, 4, 0, 5, 9, 7, 10]  # "a\n", "\n bc.\n\n", "a\n\n\n", "\r\n####7"
    assert Newline().split(ids, PIECES.__getitem__) == [(0, 3), (3, 1, 4), (0, 5), (9, 7, 10)]


def test_a_marker_is_text() -> None:
    assert Newline().split([0, 8, 1], PIECES.__getitem__) == [(0, 8, 1)]


def test_every_and_turn() -> None:
    assert [len(s) for s in Every(n=3).split([0] * 8, PIECES.__getitem__)] == [3, 3, 2]
    assert len(Turn().split([0, 3] * 500, PIECES.__getitem__)) == 1
    for n in (0, -1, 1000):
        with pytest.raises(ValueError, match="every"):
            Every(n=n)


def test_newline_guards_against_a_line_that_never_ends() -> None:
    assert [len(s) for s in Newline(max_segment=4).split([0] * 10, PIECES.__getitem__)] == [4, 4, 2]


def test_a_sentence_ends_with_its_stop_but_a_decimal_point_is_none() -> None:
    words = ("It", " cost", " 3", ".", "5", " euros", ".", ' "', "Why", '?"', " he", "\n", "asked", " 7", "!", "\n", " Mr", " A")
    parts = Sentence().split(range(len(words)), words.__getitem__)
    told = ["".join(words[i] for i in part) for part in parts]
    assert told == ["It cost 3.5 euros.", ' "Why?"', " he\n", "asked 7!", "\n Mr A"]
    assert [len(s) for s in Sentence(max_segment=4).split([0] * 10, ("a",).__getitem__)] == [4, 4, 2]


def cut(text: str, **settings: int) -> list[str]:
    """The parts of a text whose tokens are words, blanks before them, and single marks."""
    words = re.findall(r" ?\w+| ?[^\w\s]|\n", text)
    assert "".join(words) == text
    return ["".join(words[i] for i in part) for part in Rules(**settings).split(range(len(words)), words.__getitem__)]


@pytest.mark.parametrize(
    "parts",
    [
        ["He ate 3 + 4 = 7 figs.", " Then he slept."],
        ["It rained. It was late.\n"],  # nothing is finished
        ["So it was late.", " He slept."],
        ["16 + 1,200.5 = 1,216.5 euros,", " so Ann has it."],
        ["We need x =\n3 + 4 = 7 in all.", " Good."],  # not within an equation
        ["The sum = 48 + 24\nIt is 48 + 24 = 72 in all.", " Good."],  # an equation that is not worked out
        ["Sold in May = 48 / 2.\nThat is 48 / 2 = 24 figs.", " Good."],
        ["So x = figs *\n2 and that is it.", " Good."],
        ["It costs 2 * 3 = $6 today.", " Good."],
        ["In all 3 + 4 = 7\n", "Good."],
        ["1. Wash the figs.\n", "2. Eat the figs.\n", "Sleep."],
        ["Let \\[ x = 7. \\]", " Then y."],
        ["Let $x = 3 + 4 = 7$", " and go on to $y$.\n"],  # a formula of one letter finishes nothing
        ["We look for \\[ 3 + 4 = \\] and for $3 + 4 = $ too. It is $3 + 4 = 7$", " after all."],
        ["Ann has $5 and $6, then $5 + $3 = $8 now.", " Good."],  # money
        ["The total, she said, is seven.", " Good."],  # a comma does not end a conclusion
    ],
    ids=str,
)
def test_rules_cut_where_a_thought_ends(parts: list[str]) -> None:
    assert cut("".join(parts), min_segment=3) == parts


def test_rules_leave_short_ends_to_what_follows() -> None:
    assert cut("2 = 2.\nSo 3 = 3 it is.\n", min_segment=8) == ["2 = 2.\nSo 3 = 3 it is.", "\n"]


def test_rules_cut_softly_where_no_sum_is_open() -> None:
    """Between words once a segment is long enough; never between a sum and its result, as `max_segment` alone would."""
    text = "Now after a while Ann has 30 + 40 * 2 = 110 figs in her large bag. She sells 5 x 2 = 10 of them."
    soft = cut(text, min_segment=4, soft=4)
    assert "".join(soft) == text and len(soft) > 4
    assert [p for p in soft if "=" in p] == [p for p in soft if re.search(r"[-+*x] \d", p)]
    hard = cut(text, min_segment=4, max_segment=5)
    assert any("=" in p and not re.search(r"\d [-+*x] \d.* =", p) for p in hard), "the control cuts a sum in two"
    for wrong in (3, 256):
        with pytest.raises(ValueError, match=f"needs soft from min_segment=4 to below max_segment=256, got {wrong}"):
            Rules(min_segment=4, soft=wrong)


def test_random_is_random_and_always_the_same() -> None:
    ids = list(range(20_000))
    cuts = {seed: [len(s) for s in Random(mean=10, seed=seed, max_segment=200).split(ids, str)] for seed in (0, 1)}
    assert all(9 < len(ids) / len(c) < 11 for c in cuts.values())
    assert cuts[0] != cuts[1]
    assert cuts[0] == [len(s) for s in Random(mean=10, max_segment=200).split(ids, str)]
    with pytest.raises(ValueError, match="mean of at least 1 token, got mean=0"):
        Random(mean=0)
