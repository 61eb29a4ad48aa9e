"""What a dataset is: examples by split, and a score for an answer. It never sees a comp id or a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from context_memory.data._licences import UNKNOWN
from context_memory.text import Example


class Dataset(ABC):
    """A dataset. Subclasses are frozen dataclasses whose fields are its settings (`data.path=...`, `data.seed=...`)."""

    plugin: ClassVar[bool] = True
    samples: ClassVar[tuple[Example, ...]] = ()
    """Three inline examples, for tests."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[Example]:
        """The examples of `split` (`train`, `validation` or `test`), always in the same order."""

    def dropped(self, split: str) -> int:
        """How many rows of the source are not among the examples because they are wrong."""
        return 0

    @property
    def licence(self) -> str:
        """Of the data, as an SPDX name or in words, several with ` + `; adapters that are trained on them say it on their card."""
        return UNKNOWN

    def classes(self, example: Example, answer: str) -> tuple[str, str, str] | None:
        """For macro F1, a score of a whole set: to which classes the example belongs (a name; F1 is averaged within it, then over all of
        them), the right one, and the one that was answered. None where answers are no classes."""
        return None

    @abstractmethod
    def score(self, example: Example, answer: str) -> dict[str, float]:
        """Scores of an answer, each between 0 and 1 (but `mae`, in points); `correct` is always there."""
