"""GSM-Symbolic: GSM8K's problems as templates, filled in anew for every example.

Mirzadeh et al. 2024, arXiv:2410.05229, as re-implemented in the `reasoning-gym` package (85 templates that its authors trust; its
`difficulty` has one value so far, so it is no setting here). The worked solution is its `metadata["answer_cot"]`; we bring it to
one step a line: blank lines and bullets go, a heading joins the line below it, and the last line is `#### n`.

A few templates have so few fillings that two seeds give the same problem. So a split has its own seeds, and besides owns a share
of all problems by a checksum of their text.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from context_memory.data._answers import final_number, same
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = {"train": range(2, 10), "validation": range(1), "test": range(1, 2)}
"""The tenths of all problems that each split owns."""
SUFFIX = " Give the result as your final answer. Do not include units."
SEEDS_APART = 100_000_000
"""Example i of a split uses seed + i; a split's seeds are this far from the next one's."""


def generator(seed: int, size: int) -> Any:
    """reasoning-gym's own dataset.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of packages that it needs, where nobody has compiled them yet
            import reasoning_gym
    except ImportError as error:
        raise ImportError(
            "data=gsm_symbolic needs the package reasoning-gym, which is not installed; run: pip install 'context-memory[gym]'."
        ) from error
    return reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=size)


def lines(solution: str, answer: str) -> str:
    """A solution with one step a line.

    >>> print(lines("1. Cost:\\n   - 2 x 3 = 6\\n\\nSo 6.\\n#### 6.0", "6"))
    1. Cost: 2 x 3 = 6
    So 6.
    #### 6
    """
    kept = [re.sub(r"^\s*[-•*] ", "", line).strip() for line in solution.split("####")[0].split("\n") if line.strip()]
    return re.sub(r":\n", ": ", "\n".join([*kept, f"#### {answer}"]))


@lru_cache(maxsize=8)
def load(seed: int, split: str, size: int) -> tuple[Example, ...]:
    """The first `size` problems of a split, about 0.1 ms for each that is looked at."""
    offset = SEEDS_APART * (1 + 3 * seed + list(SPLITS).index(split))
    problems = generator(offset, size * 20 + 1000)  # a split owns a tenth at least; a problem is made when it is looked at
    found: list[Example] = []
    for problem in problems:
        question, answer = problem["question"].removesuffix(SUFFIX), problem["answer"]
        solution = problem["metadata"]["answer_cot"]
        right = same(final_number(solution, marked=True), final_number(f"#### {answer}"))
        if right and zlib.crc32(question.encode()) % 10 in SPLITS[split]:
            meta = {"answer": final_number(f"#### {answer}")}
            found.append(Example(question, lines(solution, answer), id=f"gsm_symbolic/{split}/{len(found)}", meta=meta))
        if len(found) == size:
            return tuple(found)
    raise RuntimeError(f"reasoning-gym gave {len(found)} of {size} {split} problems for seed {seed}; try another data.seed.")


@dataclass(frozen=True)
class GsmSymbolic(Dataset):
    """Problems made by reasoning-gym; splits share no seed and no problem."""

    seed: int = 0
    """Of the problems."""
    train: int = 8_000
    """Problems to train on."""
    validation: int = 400
    """Problems to validate with."""
    test: int = 400
    """Problems to test with."""

    samples: ClassVar[tuple[Example, ...]] = tuple(
        Example(prompt, target, id=f"gsm_symbolic/sample/{i}", meta={"answer": final_number(target)})
        for i, (prompt, target) in enumerate(
            (
                (
                    "Lena has 12 pens and buys 3 boxes with 8 pens each. How many pens does she have now?",
                    "The boxes hold 3*8=24 pens\nSo she has 12+24=36 pens now\n#### 36",
                ),
                (
                    "A train of 6 wagons has 40 seats a wagon. 25% of them are free. How many people sit in it?",
                    "The train has 6*40=240 seats\nThere are 240*0.25=60 free seats\nSo 240-60=180 people sit in it\n#### 180",
                ),
                (
                    "A robe takes 2 bolts of blue fiber at $1.5 each and half as much white one. What does the fiber cost?",
                    "It takes 2/2=1 bolt of white fiber\nThat makes 2+1=3 bolts\nThey cost 3*1.5=$4.5\n#### 4.5",
                ),
            )
        )
    )

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"gsm_symbolic needs data.seed >= 0, got {self.seed}.")

    @property
    def licence(self) -> str:
        return "Apache-2.0"

    def examples(self, split: str) -> Sequence[Example]:
        if split not in SPLITS:
            raise ValueError(f"gsm_symbolic has the splits {', '.join(SPLITS)}; got '{split}'.")
        return load(self.seed, split, getattr(self, split))

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(same(final_number(answer), example.meta["answer"]))}
