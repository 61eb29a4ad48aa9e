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
    "rare": (["So", " so", " Emma", " has"], ["How", " many", "s"]),
    "headings": ([], []),
    "ending": ([], []),
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


def test_a_number_that_stands_already_is_not_kept_again() -> None:
    """Not what the question or an earlier step holds, however it is written, and the last of two in a step."""
    words = ("So", " ", "1", ",", "2", "0", "0", " -", " ", "4", " =", " 11", "9", "6", ",", " so", " 11", "9", "6", ".")
    rule = plugins.make("pins", "numbers", budget=9, once=True)
    chosen = [rule.chooses(Piece(range(len(words)), words, held=frozenset(held))) for held in ((), ("1200", "4"), ("4", "1200", "1196"))]  # type: ignore[attr-defined]
    assert chosen == [[16, 17, 18, 9, 2, 3, 4, 5, 6], [16, 17, 18], []]


def test_the_rarest_words_stay_whole() -> None:
    """Three everyday tokens say more than one rare one, and do not fit where there is room for two."""
    words, ids = ("My", " name", " is", " Jin", " of", " Bu", "s", "an", ". "), (5, 8, 3, 900, 2, 40, 50, 60, 1)
    rule = [plugins.make("pins", "rare", budget=budget) for budget in (4, 2, 0)]
    chosen = [[words[i] for i in r.chooses(Piece(ids, words))] for r in rule]  # type: ignore[attr-defined]
    assert chosen == [[" Bu", "s", "an", " Jin"], [" Jin", " name"], []]


def test_a_question_can_have_a_budget_of_its_own() -> None:
    words, ids = ("My", " name", " is", " Jin"), (5, 8, 3, 900)
    rules = [plugins.make("pins", "rare", budget=1, **more) for more in ({}, {"question": 3}, {"question": 0})]
    assert [[len(r.keeps(Piece(ids, words, prompt=asked))) for asked in (False, True)] for r in rules] == [[1, 1], [1, 3], [1, 0]]  # type: ignore[attr-defined]


def test_what_every_solution_says_is_not_rare() -> None:
    """A command of LaTeX is no word, and words can be named that are none here, however they are written."""
    words, ids = ("Therefore", " ", "3", "x", " \\", "frac", "{", "books", "}"), (900, 1, 2, 30, 4, 800, 5, 40, 6)
    rules = [plugins.make("pins", "rare", budget=1, skip=skip) for skip in ("", "thus therefore", "therefore books x")]
    chosen = [[words[i] for i in rule.chooses(Piece(ids, words))] for rule in rules]  # type: ignore[attr-defined]
    assert chosen == [["Therefore"], ["books"], []]


def test_of_a_chat_the_last_turn_comes_first_and_no_role() -> None:
    system, user = ("<|im_start|>", "system", "\n", "Be", " kind", "<|im_end|>", "\n"), ("<|im_start|>", "user", "\n", "I", " am", " Jin")
    words, ids = (*system, *user), (1, 700, 9, 500, 600, 2, 9, 1, 800, 9, 7, 8, 30)
    rules = [plugins.make("pins", "rare", budget=n) for n in (1, 5)]
    chosen = [[words[i] for i in rule.chooses(Piece(ids, words))] for rule in rules]  # type: ignore[attr-defined]
    assert chosen == [[" Jin"], [" Jin", " am", "I", " kind", "Be"]]


def test_a_step_without_a_number_keeps_nothing() -> None:
    assert kept("conclusions", ("So", " that", "\n")) == kept("results", ("So", " that", "\n")) == []


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("Problem", " ", "1", "2", ":", " 7", " +", " 1", "\n"), ["Problem", " ", "1", "2", ":"]),
        (("###", " Step", " 2", ".", "1", ".", " Add", "\n"), [" Step", " 2", ".", "1", "."]),
        (("\n", "**", "3", ".", "**", " Add", "\n", "(", "4", ")", " Go"), ["3", ".", "4", ")"]),
        (("7", ".", "5", " apples", "\n", "12", " =", " 12", ":", "\n", "So", " Emma", " has", " 3", "."), []),
    ],
)
def test_what_counts_the_steps_stays(words: tuple[str, ...], left: list[str]) -> None:
    """Not a figure at the beginning of a line, nor one in it."""
    assert kept("headings", words) == left


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("A", " delight", ".", "\n", "very", " good", "\n"), ["very", " good"]),
        (("A", " delight", ".", "\n", "\n", "good"), ["good"]),
        (("Dull", ".\n", "bad", "\n", "\n"), ["bad"]),
        (("Dull", ".", "\n", "not", " my", " kind", " of", "\n"), []),
        (("Hello", " there", "\n"), []),
        (("Hello", " there", "<|im_end|>", "\n", "<|im_start|>", "user", "\n"), []),
        (("\n", "\n"), []),
    ],
)
def test_a_short_last_line_stays(words: tuple[str, ...], left: list[str]) -> None:
    """Not a longer one, nor the only one."""
    assert kept("ending", words, budget=3) == left


def test_rules_add_up() -> None:
    rules = [plugins.make("pins", name) for name in ("sink", "results")]
    both = flags(rules, Piece(range(3), ("a", " 7", "b"), first=True), {})  # type: ignore[arg-type]
    assert both == (True, True, False)
    assert flags(rules, Piece(range(1), ("b",)), {}) == ()  # type: ignore[arg-type]
