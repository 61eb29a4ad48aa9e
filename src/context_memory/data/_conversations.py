"""Conversations of files and of the hub, as `dialogue` and `fact` read them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from context_memory.data import _hub
from context_memory.data._fields import all_texts, listed, sound
from context_memory.data._files import CARVED, Row, fields_of, home, must, once, part, rows_of, shown
from context_memory.data._licences import must_be_permissive, of_corpora
from context_memory.data.base import Dataset
from context_memory.errors import EmptySplit

SPLITS = ("train", "validation", "test")
TURNS = ("dialog", "dialogue", "turns")
"""Names of a list of texts."""
CHAT = "messages"
"""Of a list of {role, content}, as chat programs write them."""
SPEAKERS, SETTING = ("user", "assistant"), ("system", "developer")
"""Roles that speak, and those that set the scene and are left out."""


def conversation(row: Row) -> tuple[str, ...]:
    """The turns of a row, without outer blanks and line ends; empty ones are left out.

    Raises:
        ValueError: no list of at least two turns.
    """
    fields = fields_of(row)
    name = next((n for n in (*TURNS, CHAT) if fields.get(n) is not None), "")
    if not name:
        forms = f"a list of texts '{TURNS[0]}' (or {' or '.join(repr(n) for n in TURNS[1:])}), or of '{CHAT}' {{role, content}}"
        raise ValueError(f"{row[0]}: needs {forms}; have: {', '.join(fields) or 'no fields'}.")
    turns = _spoken(row) if name == CHAT else all_texts(row[0], "turn", listed(row, name))
    kept = tuple(" ".join(t.split()) for t in turns if t.strip())
    if len(kept) < 2:
        raise ValueError(f"{row[0]}: a dialogue of {len(kept)} turn(s) has nothing to answer; leave it out, or add the next turn.")
    return kept


def _spoken(row: Row) -> list[str]:
    """What is said in a chat, in turns: messages of one role that follow each other are one turn."""
    said: list[tuple[str, str]] = []
    for i, message in enumerate(listed(row, CHAT), 1):
        where = f"{row[0]}, message {i}"
        fields = fields_of((where, message))
        role, content = fields.get("role"), fields.get("content")
        if role not in (*SPEAKERS, *SETTING):
            raise ValueError(f"{where}: 'role' must be {', '.join((*SPEAKERS, *SETTING))}, got {shown(role)}; leave the message out.")
        if role in SETTING:
            continue
        if not isinstance(content, str) or not sound(content):
            raise ValueError(f"{where}: 'content' must be a text, got {shown(content)}; leave the message out.")
        if content.strip():
            said.append((str(role), content))
    return [" ".join(content for _, content in turn) for _, turn in groupby(said, key=itemgetter(0))]


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
    every = tuple(map(conversation, rows))
    found = tuple(turns for turns in every if part("\n".join(turns)) in CARVED[split]) if place.is_file() else every
    if not found:
        raise EmptySplit(f"'{place}': none of its {len(every)} conversations is in the {split} split; give more, or a folder.")
    return found


@dataclass(frozen=True)
class Conversations(Dataset):
    """Made of the conversations of `path` (a folder of corpora, or a file, which is carved), else of `$CCM_DATA/dialogue`."""

    path: str = ""
    """A folder or file in the place of `$CCM_DATA`'s."""
    corpus: str = "self_dialogue"
    """Folders of `path`, with + between them; of these, soda and dailydialog may come from the hub."""
    most: int = 20000
    """Conversations of a split that are read from the hub (SODA has over a million)."""
    permissive: bool = True
    """Do not train on a corpus that is known to forbid commercial use (dailydialog)."""

    @property
    def licence(self) -> str:
        return of_corpora(self.path, self.corpus)

    def read(self, split: str, turns: int, advice: str) -> tuple[tuple[str, ...], ...]:
        """The conversations of a split.

        Raises:
            ValueError: no such split or corpus, one that is not to be trained on, or none of so many turns.
        """
        must(split, SPLITS, type(self).__name__.lower())
        if self.permissive:
            must_be_permissive(self.licence, split)
        found = conversations(self.path, self.corpus, split, self.most)
        if (longest := max(map(len, found))) < turns:
            raise EmptySplit(f"no conversation of the {split} split has {turns} turns, the longest has {longest}; {advice}.")
        return found
