"""Which tokens each pin rule keeps, budgets, and that every rule of the folder is in the table."""

from __future__ import annotations

import pytest

from context_memory import plugins
from context_memory.pins.base import Piece, flags

STEP = ("So", " 3", "0", " -", " ", "4", " =", " ", "2", "6", ",", " so", " Emma", " has", " ", "2", "6", ".", "\n")
QUESTION = ("How", " many", " 7", "s", "?")
KEPT = {
    "sink": ([], ["How"]),
    "prompt": ([], ["How", " many", " 7", "s", "?"]),
    "results": (["2", "6"], [" 7"]),
    "numbers": ([" 3", "0", "4", "2", "6", "2", "6"], [" 7"]),
    "conclusions": ([" Emma", " has", "2", "6"], ["How", " many", " 7"]),
}
"""Rule -> what it keeps of the step, and of the question, which comes first."""


def kept(name: str, words: tuple[str, ...], **settings: object) -> list[str]:
    question = words is QUESTION
    rule = plugins.make("pins", name, **settings)
    chosen = rule.keeps(Piece(range(len(words)), words, first=question, prompt=question))  # type: ignore[attr-defined]
    return [word for i, word in enumerate(words) if i in chosen]


def test_the_table_has_every_rule() -> None:
    assert set(KEPT) == set(plugins.keys("pins")) - {"learned"}  # test_saliency.py


@pytest.mark.parametrize("name", KEPT)
def test_what_a_rule_keeps(name: str) -> None:
    assert (kept(name, STEP), kept(name, QUESTION)) == KEPT[name]


@pytest.mark.parametrize(
    ("name", "budget", "left"),
    [("numbers", 3, ["2", "2", "6"]), ("conclusions", 3, [" has", "2", "6"]), ("results", 1, ["2"]), ("prompt", 2, [])],
)
def test_a_budget_keeps_the_most_important(name: str, budget: int, left: list[str]) -> None:
    assert kept(name, STEP, budget=budget) == left


def test_a_step_without_a_number_keeps_nothing() -> None:
    assert kept("conclusions", ("So", " that", "\n")) == kept("results", ("So", " that", "\n")) == []


def test_rules_add_up() -> None:
    rules = [plugins.make("pins", name) for name in ("sink", "results")]
    both = flags(rules, Piece(range(3), ("a", " 7", "b"), first=True), {})  # type: ignore[arg-type]
    assert both == (True, True, False)
    assert flags(rules, Piece(range(1), ("b",)), {}) == ()  # type: ignore[arg-type]
