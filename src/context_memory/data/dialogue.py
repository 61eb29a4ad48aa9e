"""Conversations: the segments are turns, and the next turn is the answer.

Kim et al., ICLR 2024, section 4 (DailyDialog, SODA). Any .jsonl of rows {"dialog": [turn, ...]} (or "dialogue"), or folders of
them (`soda/train.jsonl`); `soda` (CC BY 4.0) and `dailydialog` (non-commercial) come from the hub where there is no such file.

A window of `turns` turns and the one after it is one example: all but the last of them are memory, each learnt as well, the last is
read verbatim. A test split takes the *first* window of every conversation that is long enough, so that with `evaluation.depths`
the same answers are asked for at every number of turns in memory and only the memory changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from context_memory.data import _hub
from context_memory.data._fields import all_texts, listed
from context_memory.data._files import Row, home, must, once, rows_of
from context_memory.data._licences import must_be_permissive, of_corpora
from context_memory.data._rouge import rouge_l, said
from context_memory.data.base import Dataset
from context_memory.text import Example

SPLITS = ("train", "validation", "test")


def conversation(row: Row) -> tuple[str, ...]:
    """The turns of a row, without outer blanks and line ends; empty ones are left out.

    Raises:
        ValueError: no list of at least two turns.
    """
    turns = all_texts(row[0], "turn", listed(row, "dialog", "dialogue"))
    kept = tuple(" ".join(t.split()) for t in turns if t.strip())
    if len(kept) < 2:
        raise ValueError(f"{row[0]}: a dialogue of {len(kept)} turn(s) has nothing to answer; leave it out, or add the next turn.")
    return kept


@once
def conversations(path: str, corpus: str, split: str, most: int) -> tuple[tuple[str, ...], ...]:
    """Those of the files, in the order of the corpora, then those of the hub."""
    names = corpus.split("+")
    try:
        place = home(path, "dialogue")
    except ValueError:
        if path or not set(names) <= set(_hub.CONVERSATIONS):
            raise
        place = Path()
    file_of = {name: place / name / f"{split}.jsonl" for name in names}
    far = [] if place.is_file() else [name for name in names if name in _hub.CONVERSATIONS and not file_of[name].is_file()]
    files = [place] if place.is_file() else [file_of[name] for name in names if name not in far]
    if lacking := [f for f in files if not f.is_file()]:
        have = ", ".join(sorted(p.name for p in place.iterdir() if p.is_dir())) or "nothing"
        raise ValueError(f"no file '{lacking[0]}'; data.corpus= names folders of '{place}' (a+b for two): {have}.")
    rows = [row for file in files for row in rows_of(file)] + [row for name in far for row in _hub.conversations(name, split, most)]
    return tuple(map(conversation, rows))


def must_be_long(found: Sequence[Sequence[str]], split: str, turns: int, advice: str) -> None:
    """Raises ValueError unless a conversation has so many turns."""
    if (longest := max(map(len, found))) < turns:
        raise ValueError(f"no conversation of the {split} split has {turns} turns, the longest has {longest}; {advice}.")


def example(turns: Sequence[str], id: str) -> Example:
    """All but the last two turns are the context."""
    *context, prompt, target = turns
    return Example(prompt, target, tuple(context), learn=(0,) * len(context), turns=True, id=id)


@dataclass(frozen=True)
class Dialogue(Dataset):
    """Turns of `path` (a file, or a folder of corpora), else of `$CCM_DATA/dialogue`."""

    path: str = ""
    corpus: str = "self_dialogue"
    """Folders of `path`, with + between them; of these, soda and dailydialog may come from the hub."""
    turns: int = 13
    """Turns before the answer; the memory holds all but the last of them."""
    most: int = 20000
    """Conversations of a split that are read from the hub (SODA has over a million)."""
    permissive: bool = True
    """Do not train on a corpus that is known to forbid commercial use (dailydialog)."""

    samples: ClassVar[tuple[Example, ...]] = (
        example(("Do you like films?", "I do. Mostly old ones.", "Which one did you see last?", "Metropolis, at the open air."), "a"),
        example(("We moved to Oslo.", "How is it there?", "Cold, and the light is lovely.", "I must visit you in June."), "b"),
        example(("My dog ate the cake.", "All of it?", "Every crumb. He sleeps now."), "c"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise ValueError(f"turns must be at least 2, one in memory and one to answer, got {self.turns}.")

    @property
    def licence(self) -> str:
        return of_corpora(self.path, self.corpus)

    def examples(self, split: str) -> Sequence[Example]:
        must(split, SPLITS, "dialogue")
        if self.permissive:
            must_be_permissive(self.licence, split)
        found = conversations(self.path, self.corpus, split, self.most)
        must_be_long(found, split, *((self.turns + 1, "lower data.turns") if split == "test" else (3, "give longer ones")))
        out: list[Example] = []
        for i, turns in enumerate(found):
            n, name = self.turns + 1, f"{self.corpus}/{split}/{i}"
            if split == "test":
                out += [example(turns[:n], name)] if len(turns) >= n else []
            else:
                out += [example(turns[a : a + n], f"{name}/{a}") for a in range(0, max(1, len(turns) - 3), self.turns) if len(turns) > 2]
        return out

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(said(answer) == said(example.target)), "rouge_l": rouge_l(example.target, answer)}
