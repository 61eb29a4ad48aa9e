"""Personalisation: the segments are entries of a user's profile, the answer is what that user would say.

In the manner of LaMP (Salemi et al., ACL 2024, arXiv:2304.11406) as in Kim et al., ICLR 2024, section 4. Reads rows {profile: [{text,
rating}], input, output, options} (one .jsonl a split), and LaMP's own files, LaMP-1 to LaMP-7 (`_lamp.py`). Every entry's
rating is learnt from the entries before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from context_memory.data._files import home, must, once, rows_of
from context_memory.data._lamp import Entry, User, lamp, plain
from context_memory.data._licences import UNKNOWN
from context_memory.data._rouge import among, rouge_l, said
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = ("train", "validation", "test")


@once
def users(path: str, task: str, split: str) -> tuple[User, ...]:
    """The rows of a split."""
    place = home(path, "personal")
    if place.is_file():
        raise ValueError(f"'{place}' is a file; data.path= is the folder of {', '.join(f'{s}.jsonl' for s in SPLITS)}, or of LaMP's files.")
    return lamp(place, int(task.removeprefix("LaMP-")), split) if task else tuple(map(plain, rows_of(place / f"{split}.jsonl")))


def example(profile: Sequence[Entry], prompt: str, target: str, options: tuple[str, ...], id: str, group: str = "") -> Example:
    """What the user said of an entry stands on a line of its own, as the answer does."""
    context = tuple(f"{e.text}\n{e.label}\n" if e.label else e.text for e in profile)
    learn = tuple(len(e.text) + 1 if e.label else -1 for e in profile)
    return Example(prompt, target, context, learn=learn, options=options, id=id, group=group)


@dataclass(frozen=True)
class Personal(Dataset):
    """Profiles of `path`, else of `$CCM_DATA/personal`."""

    path: str = ""
    """A folder or file in the place of `$CCM_DATA`'s."""
    task: str = ""
    """`LaMP-1` to `LaMP-7` for LaMP's own files (`dev` is the test split: answers of the test files were never published). LaMP-2 is films
    or, as in the paper, news, whichever the files have."""
    k: int = 16
    """Entries of the profile."""
    select: str = "recent"
    """Which: the `recent` ones, or those that `bm25` finds for the question (latest last; the recent ones where it finds none)."""

    samples: ClassVar[tuple[Example, ...]] = tuple(
        example([Entry("Alien (1979)", "5"), Entry("Grease (1978)", "2")], film, rating, ("1", "2", "3", "4", "5"), film)
        for film, rating in (("Aliens (1986)", "5"), ("Mamma Mia! (2008)", "1"), ("Gravity (2013)", "4"))
    )

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, an entry to remember, got {self.k}.")
        if self.select not in ("recent", "bm25"):
            raise ValueError(f"select must be recent or bm25, got {self.select!r}.")
        if self.task and self.task not in {f"LaMP-{n}" for n in range(1, 8)}:
            raise ValueError(f"task must be LaMP-1 to LaMP-7, or empty for rows of our own form, got {self.task!r}.")

    @property
    def licence(self) -> str:
        """The films of `$CCM_DATA/personal` are MovieLens'; LaMP's terms and those of one's own files are for their user to read."""
        return UNKNOWN if self.path or self.task else "MovieLens terms of GroupLens (research, non-commercial)"

    def examples(self, split: str) -> Sequence[Example]:
        must(split, SPLITS, "personal")
        out: list[Example] = []
        for i, user in enumerate(users(self.path, self.task, split)):
            if not user.profile:
                raise ValueError(f"{user.where}: the profile is empty: there is nothing to remember; leave the row out.")
            chosen = user.profile[-self.k :] if self.select == "recent" else closest(user.profile, user.prompt, self.k)
            out.append(example(chosen, user.prompt, user.target, user.options, f"personal/{split}/{i}", user.name))
        return out

    def classes(self, example: Example, answer: str) -> tuple[str, str, str] | None:
        """LaMP-2 is judged by macro F1."""
        return ("", said(example.target), among(example.options, answer)) if example.options else None

    def score(self, example: Example, answer: str) -> dict[str, float]:
        """For ratings also `mae`: how many points the answer is off, the whole scale where it is no number; for free texts ROUGE-L."""
        scores = {"correct": float(said(answer) == said(example.target))}
        if not example.options:
            return scores | {"rouge_l": rouge_l(example.target, answer)}
        if not all(o.isdecimal() for o in example.options):
            return scores
        span = max(map(int, example.options)) - min(map(int, example.options))
        off = min(span, abs(int(said(answer)) - int(example.target))) if said(answer).isdecimal() else span
        return scores | {"mae": float(off)}


def closest(profile: Sequence[Entry], question: str, k: int) -> list[Entry]:
    """The k entries that BM25 ranks highest for the question, in their order; the most recent ones where no entry has a word of it.

    Raises:
        ImportError: bm25s is not installed.
    """
    import bm25s  # type: ignore[import-untyped]

    words = bm25s.tokenize([e.text for e in profile], show_progress=False)  # drops stop words and single characters
    if not any(words.ids):
        return list(profile[-k:])
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    k = min(k, len(profile))
    found, scores = index.retrieve(bm25s.tokenize([question], show_progress=False), k=k, show_progress=False)
    return [profile[i] for i in sorted(found[0].tolist())] if scores.any() else list(profile[-k:])
