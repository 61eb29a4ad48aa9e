"""Pin rules: what each keeps, and the laws that hold over the open folder, each with a rule that breaks it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import toys
from context_memory import head, plugins
from context_memory.boundaries.every import Every
from context_memory.encode import Encoder, Keeping
from context_memory.pins.base import Piece, Pin, flags
from context_memory.text import Example

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
"""Rule -> what it keeps of the step, and of the question, which comes first. A rule that is not here has the laws below."""


def kept(name: str, words: tuple[str, ...], **settings: object) -> list[str]:
    question = words is QUESTION
    rule = plugins.make("pins", name, **settings)
    chosen = rule.keeps(Piece(range(len(words)), words, first=question, prompt=question))  # type: ignore[attr-defined]
    return [word for i, word in enumerate(words) if i in chosen]


@pytest.mark.parametrize("name", KEPT)
def test_what_a_rule_keeps(name: str) -> None:
    assert (kept(name, STEP), kept(name, QUESTION)) == KEPT[name]


@pytest.mark.parametrize(
    ("name", "budget", "left"),
    [("numbers", 3, ["4", "2", "6"]), ("conclusions", 3, [" has", "2", "6"]), ("results", 1, ["2"]), ("prompt", 2, [])],
)
def test_a_budget_keeps_the_most_important(name: str, budget: int, left: list[str]) -> None:
    assert kept(name, STEP, budget=budget) == left


def test_a_number_is_kept_whole_or_not_at_all() -> None:
    """The first digit of 26 is 2, which nobody said. (Adapters of before were trained with such.)"""
    assert kept("numbers", STEP, budget=1) == ["4"]
    assert kept("numbers", STEP, budget=1, whole=False) == ["2"]
    assert kept("numbers", STEP, budget=3, whole=False) == ["2", "2", "6"]
    assert kept("numbers", STEP, budget=5) == ["4", "2", "6", "2", "6"]


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


# ---- laws of every rule in the folder ---------------------------------------------------------------------------------------

Maker = Callable[..., Pin]
SIZE = 16
"""Numbers of a hidden state."""
N = 24
"""Tokens of a segment that is streamed."""
ODD = (
    "", "\N{REPLACEMENT CHARACTER}", "<|im_end|>", "\n\n", "é", "\N{ARABIC-INDIC DIGIT THREE}", " 1.2.3,4", "###", "\n", " \\", "\x00",
    " 2", "bad",
)  # fmt: skip
EXAMPLES = [
    Example("Jin has 12 figs, and Emma has 30. How many?", "1. Jin has 12.\nSo 12 + 30 = 42 in all,\n2. so Emma and Jin have 42.\nYes\n42"),
    Example("Was it good?", "It took 7 + 5 = 12 days of 12,\nso it was a dull book for Emma.\nbad\n(3) 12, 5\nYes"),
]


def states(n: int, seed: int = 0) -> Tensor:
    """(n, SIZE) hidden states."""
    return torch.randn(n, SIZE, generator=torch.Generator().manual_seed(seed))


def pieces() -> list[Piece]:
    """Known text and odd text of every length, an empty one too, at every place of a memory."""
    vocabulary = tuple(dict.fromkeys((*STEP, *QUESTION, *ODD)))
    drawn = [tuple(random.Random(n).choices(vocabulary, k=n)) for n in (0, 1, 2, 9, 40)]
    texts = [STEP, QUESTION, (" 2", ".", "\n", "bad"), *((word,) for word in ODD), *drawn]
    places: list[dict[str, Any]] = [{}, {"first": True}, {"first": True, "prompt": True}, {"held": frozenset({"26", "7"})}]
    return [Piece([vocabulary.index(word) for word in words], words, **place) for words in texts for place in places]


def keeps(rule: Pin, piece: Piece) -> set[int]:
    """What is kept; hidden states are read of answers alone."""
    read = rule.needs_hidden and not piece.prompt
    return rule.keeps(replace(piece, scores=rule.read(states(len(piece.ids)))) if read else piece)


def within(make: Maker) -> None:
    """Only tokens of the segment, at most `budget` of them; an empty segment and odd text are no trouble."""
    for rule in (make(), *(make(budget=n) for n in (0, 1, 3))):
        for piece in pieces():
            kept = keeps(rule, piece)
            assert kept <= set(range(len(piece.ids))) and len(kept) <= rule.budget, (rule, piece, kept)


def alike(make: Maker) -> None:
    """A rule that has seen other segments, in whatever order, keeps what a new one keeps."""
    alone, rule = [keeps(make(), piece) for piece in pieces()], make()
    for _ in range(2):
        assert [keeps(rule, piece) for piece in reversed(pieces())] == alone[::-1]


def offline_is_streaming(make: Maker) -> None:
    """An answer pinned whole and alone, as in training == while two are written side by side, a token of each at a time."""
    *each, both = (Encoder(toys.tokenizer(), Every(n=N), [make(budget=5)], chat=False) for _ in range(3))
    hidden, keeping = [states(3 * N, seed) for seed in (0, 1)], [Keeping(both, both.prompt(example)) for example in EXAMPLES]
    alone = [[s.pins for s in e.segments(x, e.read(h)) if s.target and s.compress] for e, x, h in zip(each, EXAMPLES, hidden)]
    reads = [both.read(torch.stack(rows)) for rows in zip(*hidden)]
    for here in (slice(0, N), slice(N, 2 * N), slice(2 * N, 3 * N)):
        for lane, example in enumerate(EXAMPLES):
            scores = {reader: [read[reader][lane] for read in reads[here]] for reader in both.readers}
            kept = keeping[lane].pin(list(both.answer(example)[here]), scores=scores)
            assert kept == alone[lane][here.start // N], (lane, here)


def refuses(make: Maker) -> None:
    """A budget below zero."""
    with pytest.raises(ValueError, match="budget"):
        make(budget=-1)


LAWS = (within, alike, offline_is_streaming, refuses)


def maker(key: str, home: Path) -> Maker:
    """Makes the rule of this name, with a head of random numbers in `home` where it has one."""
    kind = plugins.find("pins", key)
    if issubclass(kind, head.Headed):
        torch.manual_seed(1)
        head.save(head.Head(SIZE, 8), home / kind.file_name, {"model": "tiny", "weights": "w", "task": ""})
    return partial(plugins.make, "pins", key, **plugins.beside(home, "pins", key))  # type: ignore[return-value]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("key", plugins.keys("pins"))
def test_every_rule_obeys(key: str, law: Callable[[Maker], None], tmp_path: Path) -> None:
    law(maker(key, tmp_path))


@pytest.mark.parametrize("key", [*KEPT, "learned"])
def test_control_the_laws_are_shown_something_that_is_kept(key: str, tmp_path: Path) -> None:
    rule = maker(key, tmp_path)()
    assert any(keeps(rule, piece) for piece in pieces())


@dataclass(frozen=True)
class Toy(Pin):
    """Obeys every law, unless it is told otherwise."""

    budget: int = 4
    choose: Callable[[int], list[int]] = lambda n: list(range(n))

    def chooses(self, piece: Piece) -> list[int]:
        return self.choose(len(piece.ids))


class Greedy(Toy):
    """Ignores its budget."""

    def keeps(self, piece: Piece) -> set[int]:
        return set(self.chooses(piece))


class Nosy(Toy):
    """Compares a token with its batch mates."""

    needs_hidden: ClassVar[bool] = True

    def read(self, hidden: Tensor) -> list[float]:
        return list(map(float, (hidden - hidden.mean(0)).sum(-1)))

    def chooses(self, piece: Piece) -> list[int]:
        return [i for i, score in enumerate(piece.scores) if score > 0]


ASKED = count()
BESIDE = partial(Toy, choose=lambda n: [n])
MOODY = partial(Toy, choose=lambda n: list(range(n))[next(ASKED) % 3 :])
WRONG = [
    (within, Greedy), (within, BESIDE), (alike, MOODY), (offline_is_streaming, MOODY), (offline_is_streaming, Nosy),
    (refuses, lambda budget: Toy(abs(budget))),
]  # fmt: skip


@pytest.mark.parametrize(("law", "make"), WRONG)
def test_control_a_wrong_rule_is_found_out(law: Callable[[Maker], None], make: Maker) -> None:
    law(Toy)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(make)
