"""A fact said in a real conversation and asked for later: does the memory still hold it?

The conversations are those of `dialogue`; into one of them a turn is put that says the speaker's name, town, pet or the like, and at
the end it is asked for. Names of the test split are in no other split. Chosen among `options`, or written out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from context_memory.data._files import must
from context_memory.data._rouge import said
from context_memory.data.base import Dataset
from context_memory.data.dialogue import SPLITS, conversations
from context_memory.text import Example

KINDS: dict[str, tuple[str, str, str, str]] = {
    "name": (
        "By the way, my name is {}.", "What is my name?", "Your name is {}.",
        "Anna Ben Clara David Elena Felix Greta Hugo Ida Jonas Karla Leo Maria Nils Olga Paul Rosa Simon Tara Viktor Wendy "
        "Yusuf Zoe Amir Bella Carlos",
    ),
    "town": (
        "I live in {}, by the way.", "Which town do I live in?", "You live in {}.",
        "Oslo Lima Cairo Boston Dublin Kyoto Madrid Naples Porto Quito Riga Seoul Tunis Vienna Warsaw Zurich Athens "
        "Berlin Chicago Delhi Geneva Havana",
    ),
    "pet": (
        "I have a pet {} at home.", "Which pet do I have?", "You have a pet {}.",
        "rabbit parrot hamster turtle snake lizard goldfish canary pony ferret mouse frog duck goat spider pigeon crab chicken donkey pig",
    ),
    "job": (
        "I work as a {}.", "What do I work as?", "You work as a {}.",
        "baker nurse pilot teacher lawyer farmer singer painter plumber waiter driver dentist tailor writer barber "
        "judge miner sailor clerk chef",
    ),
    "colour": (
        "My favourite colour is {}.", "What is my favourite colour?", "Your favourite colour is {}.",
        "red blue green yellow purple orange pink brown black white grey violet turquoise silver gold beige crimson indigo",
    ),
    "number": (
        "My room number is {}.", "What is my room number?", "Your room number is {}.",
        " ".join(str(n) for n in range(112, 990, 37)),
    ),
}  # fmt: skip
"""What is said, how it is asked for, the answer, and the words; every fourth word is for tests alone."""
CHOICES = 8


def words(kind: str, split: str) -> list[str]:
    """The words of a split."""
    every = KINDS[kind][3].split()
    held = every[3::4]
    return held if split == "test" else [w for w in every if w not in held]


def example(turns: Sequence[str], kind: str, word: str, others: Sequence[str], at: int, id: str) -> Example:
    """The fact stands before turn `at`; `others` are the wrong answers."""
    says, asks, answers, _ = KINDS[kind]
    context = (*turns[:at], says.format(word), *turns[at:])
    options = tuple(sorted(answers.format(w) for w in (word, *others)))
    meta = {"word": word, "kind": kind, "ago": len(turns) - at}
    return Example(asks, answers.format(word), context, learn=(0,) * len(context), turns=True, options=options, id=id, meta=meta)


@dataclass(frozen=True)
class Fact(Dataset):
    """Facts in the conversations of `path`, else of `$CCM_DATA/dialogue`."""

    path: str = ""
    corpus: str = "self_dialogue"
    turns: int = 12
    """Turns of the conversation, the fact not counted."""
    seed: int = 0

    samples: ClassVar[tuple[Example, ...]] = (
        example(("Hello!", "Hi. Nice day.", "It is."), "name", "Mia", ("Tom", "Kim"), 1, "a"),
        example(("Hello!", "Hi. Nice day.", "It is."), "pet", "rabbit", ("frog", "duck"), 0, "b"),
        example(("Hello!", "Hi. Nice day.", "It is."), "job", "baker", ("nurse", "pilot"), 3, "c"),
    )

    def examples(self, split: str) -> Sequence[Example]:
        must(split, SPLITS, "fact")
        out: list[Example] = []
        for i, turns in enumerate(conversations(self.path, self.corpus, split)):
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
