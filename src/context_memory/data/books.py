"""Free text: the segments are chunks of a running text, and the next chunk is what is predicted.

For streams (`ccm stream`; Kim et al., ICLR 2024, section 4.3, PG19) and to mix into other data (the original's `pretrain`). Reads .txt
files: a folder with `train/`, `valid/` (or `validation/`) and `test/`, or one file, whose first 90 % are to train on; or PG19 from the
hub (`data.corpus=pg19`, repository `emozilla/pg19`; public domain in the US). Chunks are cut between words, and nothing is put
between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from context_memory.data import _hub
from context_memory.data._files import home, must, once, text_of
from context_memory.data._licences import UNKNOWN
from context_memory.data._rouge import rouge_l, said
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = ("train", "validation", "test")
NAMES = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test",)}
SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
WORD = re.compile(r"\s*\S+")


def chunks(whole: str, words: int) -> list[str]:
    """Runs of so many words, each with the blanks before it; joined, the text without a last rest of blanks.

    >>> chunks("It was  late.\\nWe slept.", 2)
    ['It was', '  late.\\nWe', ' slept.']
    """
    found = WORD.findall(whole)
    return ["".join(found[i : i + words]) for i in range(0, len(found), words)]


@once
def texts(path: str, split: str, corpus: str = "", most: int = 0) -> tuple[str, ...]:
    """The texts of a split."""
    if corpus:
        return tuple(text for _, text in islice(_hub.books(split), most))
    place = home(path, "books")
    if place.is_file():
        whole = text_of(place)
        a, b = (int(share * len(whole)) for share in SHARES[split])
        return (whole[a:b],)
    files = sorted(f for name in NAMES[split] for f in (place / name).glob("*.txt"))
    if not files:
        raise ValueError(f"no .txt files in '{place / NAMES[split][0]}'; data.path= is a file, or a folder with train/, valid/, test/.")
    return tuple(map(text_of, files))


def example(parts: Sequence[str], id: str) -> Example:
    """The last chunk is the answer; it is asked for by nothing but the text before it."""
    *context, target = parts
    return Example("", target, tuple(context), learn=(0,) * len(context), running=True, id=id)


@dataclass(frozen=True)
class Books(Dataset):
    """Texts of `path`, else of `$CCM_DATA/books`."""

    path: str = ""
    """A folder or file in the place of `$CCM_DATA`'s."""
    corpus: str = ""
    """`pg19`: books from the hub, in the place of files."""
    most: int = 50
    """Books of a split that are read from the hub."""
    words: int = 48
    """Of a chunk."""
    chunks: int = 12
    """Of an example, the answer among them."""

    samples: ClassVar[tuple[Example, ...]] = (
        example(("It was late,", " and the rain", " had not stopped."), "a"),
        example(("Call me", " what you like.", " I will not hear it."), "b"),
        example(("There was no", " sail in sight", " all that day."), "c"),
    )

    def __post_init__(self) -> None:
        if self.corpus not in ("", "pg19") or (self.corpus and self.path):
            raise ValueError(f"corpus is pg19, for books from the hub, or empty, for files; got '{self.corpus}' and path '{self.path}'.")
        for name, least, why in (("words", 1, "a chunk has some"), ("chunks", 2, "one to remember and one to predict")):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, {why}; got {getattr(self, name)}.")

    @property
    def licence(self) -> str:
        """Of one's own files nothing is known."""
        return UNKNOWN if self.path else "public domain in the US"

    def examples(self, split: str) -> Sequence[Example]:
        must(split, SPLITS, "books")
        out: list[Example] = []
        longest = 0
        for b, whole in enumerate(texts(self.path, split, self.corpus, self.most)):
            parts = chunks(whole, self.words)
            longest = max(longest, len(parts))
            starts = range(0, len(parts) - self.chunks + 1, self.chunks)
            out += [example(parts[a : a + self.chunks], f"books/{split}/{b}/{a}") for a in starts]
        if not out:
            have = f"the longest text of the {split} split has {longest} chunk(s) of {self.words} words"
            raise ValueError(f"{have}, and an example takes {self.chunks}; lower data.chunks or data.words, or give a longer text.")
        return out

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(said(answer) == said(example.target)), "rouge_l": rouge_l(example.target, answer)}
