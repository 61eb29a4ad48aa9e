"""Tally: generated word problems that show where a memory forgets.

Every sentence of the prompt states a quantity by its relation to an earlier one; the target works them out in order, one
sentence a step, `#### n` at the end. What a step needs and the prompt does not have is the result of an earlier step, at a
known distance: a model that forgets its steps can only redo the whole chain in its head. Numbers stay within 0..99 and the
arithmetic is easy, so what is measured is memory.

>>> print(Tally.samples[1].target)
Julia folded 16 shirts on Monday and 10 on Tuesday, 16 + 10 = 26, so Julia has 26.
Compared with Julia, Adam folded 2 fewer shirts, 26 - 2 = 24, so Adam has 24.
Compared with Julia, Lena folded three times as many shirts, 26 * 3 = 78, so Lena has 78.
#### 78
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from context_memory.data._answers import final_number, numbers, same
from context_memory.data._tally_words import CONCLUSION, DISTRACTORS, QUESTIONS, RELATIONS, SCENES, SIGNS
from context_memory.data.base import Dataset
from context_memory.text import Example

SHARES = {"test": range(1), "validation": range(1, 2), "train": range(2, 10)}
"""Which tenths of all problems belong to a split, by a checksum of their numbers: disjoint in content, whatever the seed."""
REACH = (6.0, 3.0, 2.0)
"""How likely a step looks 1, 2, 3 steps back; farther ones share `FAR` each."""
FAR = 0.7


class Quantity(NamedTuple):
    """One step: `operands` make `result`; the first `len(back)` of them are the results of the steps `back` steps earlier."""

    kind: str
    operands: tuple[int, int]
    result: int
    back: tuple[int, ...] = ()


def relations(known: list[int], rng: random.Random) -> tuple[str, tuple[int, int], tuple[int, ...]]:
    """A relation to what is known already, whose result stays within 0..99: its kind, operands and distances."""
    weights = [REACH[d - 1] if d <= len(REACH) else FAR for d in range(len(known), 0, -1)]
    at, other = rng.choices(range(len(known)), weights, k=2)
    value = known[at]
    small = rng.randint(2, 9) if rng.random() < 0.8 else rng.randint(10, 12)
    kinds = {
        "more": (3, small if value + small <= 99 else None),
        "fewer": (3, small if value >= small else None),
        "twice": (1.5, 2 if 2 <= value <= 30 else None),
        "thrice": (1, 3 if 2 <= value <= 30 else None),
        "both": (0.7, known[other] if other != at and value + known[other] <= 99 else None),
    }
    possible = {kind: (weight, b) for kind, (weight, b) in kinds.items() if b is not None}
    kind = rng.choices(list(possible), [weight for weight, _ in possible.values()])[0]
    back = (len(known) - at, len(known) - other) if kind == "both" else (len(known) - at,)
    return kind, (value, possible[kind][1]), back


def compute(kind: str, a: int, b: int) -> int:
    """The result of a step."""
    return {"+": a + b, "-": a - b, "*": a * b}[SIGNS[kind]]


def hard(step: Quantity) -> int:
    """The number that a step's arithmetic turns on: what is added, taken away or multiplied with."""
    a, b = step.operands
    return b if SIGNS[step.kind] == "-" else min(a, b)


def chain(steps: int, max_operand: int, rng: random.Random) -> list[Quantity]:
    """The numbers of a problem of that many steps; the words come later."""
    a, b = rng.randint(5, 30), rng.randint(2, 12)
    found = [Quantity("given", (a, b), a + b)]
    known = [a + b]
    while len(found) < steps:
        kind, pair, back = relations(known, rng)
        if len(found) == steps - 1 > 1 and rng.random() < 0.35:
            first, second = len(known) - 1, rng.randrange(max(0, len(known) - 4), len(known) - 1)
            kind = rng.choice(("sum", "difference")) if known[first] + known[second] <= 99 else "difference"
            if kind == "difference" and known[second] > known[first]:
                first, second = second, first
            pair, back = (known[first], known[second]), (len(known) - first, len(known) - second)
        step = Quantity(kind, pair, compute(kind, *pair), back)
        if hard(step) > max_operand:
            continue
        found.append(step)
        known.append(found[-1].result)
    return found


def operands(line: str) -> tuple[float, ...]:
    """The two numbers that a line calculates with; none where it does not calculate."""
    found = re.search(r"(\d+) [-+*] (\d+) =", line)
    return tuple(map(float, found.groups())) if found else ()


def capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def tell(found: list[Quantity], distractors: int, rng: random.Random) -> tuple[str, str]:
    """Prompt and target in words."""
    people, doings = rng.choice(SCENES)
    verb, plain, things = rng.choice(doings)
    who = rng.sample(people, len(found))
    facts, lines, question = [], [], ""
    for i, (kind, (a, b), result, back) in enumerate(found):
        names = dict(zip("rs", (who[i - d] for d in back), strict=False))
        words = {"w": who[i], "v": verb, "p": plain, "t": things, "a": a, "b": b, "n": result, **names}
        if kind in QUESTIONS:
            question, line = (capital(text.format(**words)) for text in QUESTIONS[kind])
            lines.append(line)
            continue
        fact = rng.choice(RELATIONS[kind]).format(**words)
        facts.append(capital(fact) + ".")
        lines.append(CONCLUSION.format(fact=capital(fact), sign=SIGNS[kind], **words))
        question = rng.choice(QUESTIONS["last"]).format(**words)
    for text in rng.sample(DISTRACTORS, rng.randint(0, distractors)):
        facts.insert(rng.randint(1, len(facts)), text.format(k=rng.randint(2, 60)))
    return " ".join([*facts, question]), "\n".join([*lines, f"#### {found[-1].result}"])


@dataclass(frozen=True)
class Problems(Sequence[Example]):
    """The problems of one split, each made when it is asked for, from (seed, split, index) alone."""

    settings: Tally
    split: str
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int gives an Example, a slice a list of them
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"tally has {self.size} {self.split} problems, got index {index}.")
        index %= self.size
        rng = random.Random(f"tally {self.settings.seed} {self.split} {index}")
        while True:
            found = chain(rng.randint(self.settings.min_steps, self.settings.max_steps), self.settings.max_operand, rng)
            if zlib.crc32(repr(found).encode()) % 10 in SHARES[self.split]:
                break
        prompt, target = tell(found, self.settings.distractors, rng)
        told = tuple({"result": q.result, "operands": q.operands, "distances": q.back} for q in found)
        return Example(prompt, target, id=f"tally/{self.split}/{index}", meta={"steps": told, "answer": found[-1].result})


@dataclass(frozen=True)
class Tally(Dataset):
    """Word problems of `min_steps` to `max_steps` steps, with up to `distractors` unrelated sentences. Splits share no problem,
    under any settings.

    After the first step, what is added or taken away is at most `max_operand` (99: whatever comes). With small ones the
    arithmetic is within reach of a small model, and an error is a lapse of memory.
    """

    seed: int = 0
    """Of the problems."""
    min_steps: int = 3
    """Fewest steps of a solution."""
    max_steps: int = 8
    """Most steps of a solution."""
    max_operand: int = 5
    """The most that a later step adds or takes away; 99: whatever comes."""
    distractors: int = 2
    """Most sentences that have nothing to do with it."""
    train: int = 20_000
    """Problems to train on."""
    validation: int = 500
    """Problems to validate with."""
    test: int = 500
    """Problems to test with."""

    samples: ClassVar[tuple[Example, ...]]

    def __post_init__(self) -> None:
        if not 2 <= self.min_steps <= self.max_steps <= 12:
            raise ValueError(f"tally needs 2 <= min_steps <= max_steps <= 12, got {self.min_steps} and {self.max_steps}.")
        if not 2 <= self.max_operand <= 99:
            raise ValueError(f"tally needs max_operand between 2 and 99, got {self.max_operand}.")
        if not 0 <= self.distractors <= len(DISTRACTORS):
            raise ValueError(f"tally has {len(DISTRACTORS)} distractors, got distractors={self.distractors}.")

    @property
    def licence(self) -> str:
        return "Apache-2.0"

    def examples(self, split: str) -> Problems:
        if split not in SHARES:
            raise ValueError(f"tally has the splits {', '.join(SHARES)}; got '{split}'.")
        return Problems(self, split, getattr(self, split))

    def score(self, example: Example, answer: str) -> dict[str, float]:
        """`correct`: the final number. `steps`: share of steps with the right result. `distance_d`: of the results that were
        needed d steps later, the share that the answer took up as it had itself written them, right or wrong; so an early slip
        in arithmetic is not held against the memory."""
        steps = example.meta["steps"]
        texts = [line for line in answer.splitlines() if line.strip() and not line.lstrip().startswith("####")]
        texts += [""] * (len(steps) - len(texts))
        lines, worked = [numbers(text) for text in texts], [operands(text) for text in texts]
        right = [bool(line) and same(line[-1], step["result"]) for line, step in zip(lines, steps, strict=False)]
        scores = {
            "correct": float(same(final_number(answer, marked=True), example.meta["answer"])),
            "steps": sum(right) / len(steps),
        }
        taken: dict[int, list[bool]] = {}
        for i, step in enumerate(steps):
            for operand, back in enumerate(step["distances"]):
                source, used = lines[i - back], worked[i]
                taken.setdefault(back, []).append(bool(source) and bool(used) and same(used[operand], source[-1]))
        return scores | {f"distance_{back}": sum(hits) / len(hits) for back, hits in sorted(taken.items())}


Tally.samples = tuple(Tally().examples("train")[:3])
