"""Macro F1 against scikit-learn's definition by hand, its interval, and where it is asked for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from context_memory.data.icl import Icl
from context_memory.data.mixture import PART, Mixture
from context_memory.data.personal import Personal
from context_memory.data.tally import Tally
from context_memory.f1 import macro_f1
from context_memory.metrics import Prediction, summarise


def by_hand(pairs: list[tuple[str, str]]) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for c in {c for pair in pairs for c in pair if c}:
        hits = sum(right == said == c for right, said in pairs)
        scores.append(2 * hits / sum((right == c) + (said == c) for right, said in pairs))
    return sum(scores) / len(scores)


def test_it_is_the_mean_over_classes() -> None:
    draw = random.Random(0)
    pairs = [(draw.choice("aabbc"), draw.choice("aabc")) for _ in range(60)]
    found = macro_f1([("", *pair) for pair in pairs])
    assert found.mean == pytest.approx(by_hand(pairs)) and found.low < found.mean < found.high and found.n == 60
    sets = [(name, *pair) for name, part in (("x", pairs[:30]), ("y", pairs[30:])) for pair in part]
    assert macro_f1(sets).mean == pytest.approx((by_hand(pairs[:30]) + by_hand(pairs[30:])) / 2)
    assert macro_f1([("", "a", "a"), ("", "a", "")]).mean == pytest.approx(2 / 3)  # an answer that is no class is a miss


def test_always_the_frequent_class_is_accurate_and_of_no_use() -> None:
    lines = [
        Prediction(str(i), "p", right, answer="a", scores={"correct": float(right == "a")}, classes=("", right, "a"))
        for i, right in enumerate("a" * 9 + "b")
    ]
    scores = summarise(lines).scores
    assert scores["correct"].mean == 0.9 and scores["macro_f1"].mean == pytest.approx((18 / 19) / 2)


def test_answers_are_classes_where_there_are_options() -> None:
    film = Personal.samples[0]
    assert Personal().classes(film, "5.") == ("", "5", "5") and Personal().classes(film, "seven") == ("", "5", "")
    assert Icl().classes(Icl.samples[0], "bad") is not None
    assert Tally().classes(Tally.samples[0], "5") is None
    mixed, example = Mixture(parts=["icl", "tally"]), replace(Icl.samples[0], meta={**Icl.samples[0].meta, PART: "icl"})
    found, alone = mixed.classes(example, "good"), Icl().classes(Icl.samples[0], "good")
    assert found and alone and found == (f"icl {alone[0]}", *alone[1:])
