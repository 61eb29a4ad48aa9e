"""Several problems in one sequence (`data.problems=3`): long answers of any dataset, where what a memory saves is most of the cache.

The prompt lists the questions, the target holds the solutions in order, each headed by `Problem 1:` and so on. The headings are how an
answer is taken apart again: each part is scored by the dataset itself, and a part that is not there is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from context_memory.data.base import Dataset
from context_memory.errors import InputError
from context_memory.text import Example

ASKED = 'Solve these problems in order. Begin each solution with its number, as in "Problem 1:".'
HEADING = re.compile(r"^[ \t#*]*Problem (\d+)[*]*(?:[:.][ \t*]*|[ \t*]*$)", re.MULTILINE | re.IGNORECASE)
"""At the beginning of a line; `**Problem 2:**` and `### Problem 2` are headings too."""


def join(parts: Sequence[Example]) -> Example:
    """Examples as one. Where annotators have cut one of them, the end of a solution is a cut as well.

    Raises:
        InputError: an example with a context: whose question would it belong to?
    """
    target, cuts = "", list[int]()
    for number, part in enumerate(parts, 1):
        if part.context:
            raise InputError(f"data.problems joins questions and solutions, and example '{part.id}' has a context; use data.problems=1.")
        target += ("\n" if number > 1 else "") + f"Problem {number}: "
        cuts += [len(target) + cut for cut in part.cuts]
        target += part.target
        cuts += [len(target) + 1] if number < len(parts) else []
    asked = "\n".join([ASKED, *(f"{number}. {part.prompt}" for number, part in enumerate(parts, 1))])
    marked = tuple(cuts) if any(part.cuts for part in parts) else ()
    name = "+".join(part.id for part in parts) if all(part.id for part in parts) else ""
    return Example(asked, target, cuts=marked, id=name, meta={"parts": tuple(parts)})


def split(answer: str, problems: int) -> list[str]:
    """An answer as its parts, empty where one is not there. Numbers must rise: what repeats an earlier heading belongs to the part
    that it stands in, and whatever follows the last part's own solution under another heading does not count.

    >>> split("Problem 1: 1 + 1 = 2\\n#### 2\\nProblem 3: 5\\nProblem 1 was easy.\\nProblem 4: 6", 3)
    ['1 + 1 = 2\\n#### 2', '', '5\\nProblem 1 was easy.']
    """
    found: dict[int, re.Match[str]] = {}
    for heading in HEADING.finditer(answer):
        if int(heading[1]) > max(found, default=0):
            found[int(heading[1])] = heading
    ends = dict(zip(found, [*(h.start() for h in found.values())][1:]))
    return [answer[found[n].end() : ends.get(n, len(answer))].strip() if n in found else "" for n in range(1, problems + 1)]


@dataclass(frozen=True)
class Joined(Sequence[Example]):
    """Consecutive examples, `problems` at a time, each joined when it is asked for; a rest that is too short is left out."""

    single: Sequence[Example]
    problems: int

    def __len__(self) -> int:
        return len(self.single) // self.problems

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index] * self.problems
        return join(self.single[at : at + self.problems])


@dataclass(frozen=True)
class Series(Dataset):
    """The problems of a dataset, several in one."""

    single: Dataset
    problems: int

    def examples(self, split: str) -> Joined:
        found = self.single.examples(split)
        if len(found) < self.problems:
            raise ValueError(f"the {split} split has {len(found)} problems, fewer than data.problems={self.problems}.")
        return Joined(found, self.problems)

    @property
    def licence(self) -> str:
        return self.single.licence

    def dropped(self, split: str) -> int:
        return self.single.dropped(split)

    def score(self, example: Example, answer: str) -> dict[str, float]:
        """Every score of the dataset, as its mean over the parts that have it: `correct` is the share of problems that are right.
        `all_correct`: whether they all are."""
        parts = example.meta["parts"]
        scores = [self.single.score(part, text) for part, text in zip(parts, split(answer, len(parts)), strict=True)]
        taken = {name: [s[name] for s in scores if name in s] for name in dict.fromkeys(n for s in scores for n in s)}
        means = {name: sum(values) / len(values) for name, values in taken.items()}
        return {**means, "all_correct": float(means["correct"] == 1)}
