"""A fact said in a real conversation and asked for later: does the memory still hold it?

The conversations are those of `dialogue`; into one of them a turn is put that says the speaker's name, town, pet or the like, and at
the end it is asked for. Names of the test split are in no other split. Chosen among `options`, or written out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from context_memory.data._conversations import Conversations
from context_memory.data._fact_words import KINDS, words
from context_memory.data._rouge import said
from context_memory.text import Example

CHOICES = 8


def example(turns: Sequence[str], kind: str, word: str, others: Sequence[str], at: int, id: str) -> Example:
    """The fact stands before turn `at`; `others` are the wrong answers."""
    says, asks, answers, _ = KINDS[kind]
    context = (*turns[:at], says.format(word), *turns[at:])
    options = tuple(sorted(answers.format(w) for w in (word, *others)))
    meta = {"word": word, "kind": kind, "ago": len(turns) - at}
    return Example(asks, answers.format(word), context, learn=(0,) * len(context), turns=True, options=options, id=id, meta=meta)


@dataclass(frozen=True)
class Fact(Conversations):
    turns: int = 12
    """Turns of the conversation, the fact not counted."""
    seed: int = 0
    """Of what is said, and where."""

    samples: ClassVar[tuple[Example, ...]] = (
        example(("Hello!", "Hi. Nice day.", "It is."), "name", "Mia", ("Tom", "Kim"), 1, "a"),
        example(("Hello!", "Hi. Nice day.", "It is."), "pet", "rabbit", ("frog", "duck"), 0, "b"),
        example(("Hello!", "Hi. Nice day.", "It is."), "job", "baker", ("nurse", "pilot"), 3, "c"),
    )

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise ValueError(f"turns must be at least 2, got {self.turns}.")

    def examples(self, split: str) -> Sequence[Example]:
        out: list[Example] = []
        for i, turns in enumerate(self.read(split, self.turns if split == "test" else 2, "lower data.turns")):
            draw = random.Random(f"{self.seed} {split} {i}")
            kind = draw.choice(list(KINDS))
            few = words(kind, split)
            word, *others = draw.sample(few, min(CHOICES, len(few)))
            some = turns[: self.turns if split == "test" else draw.randint(2, self.turns)]
            if split != "test" or len(some) == self.turns:
                out.append(example(some, kind, word, others, draw.randint(0, len(some)), f"fact/{split}/{i}"))
        return out

    def score(self, example: Example, answer: str) -> dict[str, float]:
        """Also by how many turns ago the fact was said: the next turn's is 0."""
        correct = float(said(answer) == said(example.target))
        return {"correct": correct, f"turns_ago_{min(example.meta['ago'], 12)}": correct}
