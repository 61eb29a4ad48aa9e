"""Several datasets in one: to train one adapter for all of them, and to evaluate it on each.

The original's `unified` is [icl, dialogue], its `pretrain` [icl, dialogue, books] (`run.py --dataset`). Training examples are drawn
from the parts by weight, without repeats, until one is used up; other splits are the parts' own, one of each in turn, so that the first
few (`training.eval_samples`) are of all of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, ClassVar

from context_memory import plugins
from context_memory.data._licences import joined
from context_memory.data.base import Dataset
from context_memory.text import Example

PART = "part"


@dataclass(frozen=True)
class Mixture(Dataset):
    """`data=mixture data.parts=[icl,dialogue] data.weights=[2,1]`."""

    parts: list[str] = field(default_factory=lambda: ["icl", "dialogue"])
    """Names of datasets."""
    weights: list[float] = field(default_factory=list)
    """Shares of the training examples, in any unit; empty: equal."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the parts, `{icl: {k: 8}}`."""
    seed: int = 0
    """Of the order in which parts are drawn."""

    samples: ClassVar[tuple[Example, ...]] = (
        Example("Nice day?", "It is.", ("Hello!",), meta={PART: "dialogue"}),
        Example("A delight.", "good", ("Dull.\nbad\n",), options=("good", "bad"), meta={PART: "icl", "task": ""}),
        Example("", " sail in sight.", ("There was no",), running=True, meta={PART: "books"}),
    )

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) <= 0):
            raise ValueError(f"weights must be positive, one for each of {list(self.parts)}, got {list(self.weights)}.")
        if not self.parts or "mixture" in self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts must name other datasets, each once, got {list(self.parts)}.")
        if unknown := sorted(set(self.settings) - set(self.parts)):
            raise ValueError(f"settings for {', '.join(unknown)}, which is no part of {list(self.parts)}.")
        for name in self.parts:
            try:
                self.part(name)
            except (LookupError, TypeError, ValueError) as e:
                raise ValueError(f"part '{name}': {e}") from e

    def part(self, name: str) -> Dataset:
        return plugins.make("data", name, **dict(self.settings.get(name) or {}))  # type: ignore[return-value]

    def examples(self, split: str) -> Sequence[Example]:
        found = {name: [replace(e, meta={**e.meta, PART: name}) for e in self.part(name).examples(split)] for name in self.parts}
        if split != "train":
            return [e for turn in zip_longest(*found.values()) for e in turn if e is not None]
        draw = random.Random(f"{self.seed} mixture")
        weights = dict(zip(self.parts, self.weights or [1.0] * len(self.parts), strict=True))
        for examples in found.values():
            draw.shuffle(examples)
        out: list[Example] = []
        while all(found.values()):  # the first part that is used up ends it: the weights hold to the end
            (name,) = draw.choices(self.parts, [weights[n] for n in self.parts])
            out.append(found[name].pop())
        return out

    @property
    def licence(self) -> str:
        return joined(*(self.part(name).licence for name in self.parts))

    def classes(self, example: Example, answer: str) -> tuple[str, str, str] | None:
        """Of the part that the example is from, under its name."""
        found = self.part(name := example.meta[PART]).classes(example, answer)
        return (f"{name} {found[0]}", *found[1:]) if found else None

    def dropped(self, split: str) -> int:
        return sum(self.part(name).dropped(split) for name in self.parts)

    def score(self, example: Example, answer: str) -> dict[str, float]:
        """Of the part that the example is from; `correct` also under the part's name."""
        name = example.meta[PART]
        scores = self.part(name).score(example, answer)
        return {**scores, f"correct in {name}": scores["correct"]}
