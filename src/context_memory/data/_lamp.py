"""Users with a profile: rows of our own form, and LaMP's seven tasks as they were published.

LaMP (Salemi et al., ACL 2024): `<split>_questions.json` [{id, input, profile: [{id, ...}]}] and `<split>_outputs.json` {golds: [{id,
output}]} in a folder a task (`LaMP_2/`, or the folder itself). The profile's fields differ from task to task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_memory.data._files import Row, texts


@dataclass(frozen=True)
class Entry:
    """One thing that a user said or did, and the label that they gave it, if any."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class User:
    where: str
    profile: tuple[Entry, ...]
    prompt: str
    target: str
    options: tuple[str, ...] = ()


FIELDS: dict[int, tuple[tuple[str, ...], str]] = {
    1: (("title", "abstract"), ""),
    2: (("description",), "tag"),
    3: (("text",), "score"),
    4: (("text",), "title"),
    5: (("abstract",), "title"),
    6: (("subject", "text"), ""),
    7: (("text",), ""),
}
"""Task -> the fields of an entry that are its text, and the one that is its label."""
LABELS: dict[int, tuple[str, ...]] = {
    1: ("[1]", "[2]"),
    2: ("sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology", "fantasy",
        "romance", "thought-provoking", "social commentary", "violence", "true story"),
    3: ("1", "2", "3", "4", "5"),
}  # fmt: skip
"""Answers to choose among; the other tasks write a text."""


def plain(row: Row) -> User:
    """A row of our own form.

    Raises:
        ValueError: a field is missing.
    """
    where, fields = row
    prompt, target = texts(row, "input", "output")
    entries = fields.get("profile")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("text") for e in entries):
        raise ValueError(f"{where}: needs a list 'profile' of {{text, rating}}, got {type(entries).__name__}.")
    profile = tuple(Entry(str(e["text"]), str(e.get("rating", ""))) for e in entries)
    return User(where, profile, prompt, target, tuple(map(str, fields.get("options") or ())))


def lamp(folder: Path, task: int, split: str) -> tuple[User, ...]:
    """The users of a split.

    Raises:
        ValueError: a file is not there, or a question has no answer.
    """
    place = next((p for p in (folder / f"LaMP_{task}", folder / f"LaMP-{task}") if p.is_dir()), folder)
    name = {"train": "train", "validation": "train", "test": "dev"}[split]
    files = [place / f"{name}_{part}.json" for part in ("questions", "outputs")]
    if lacking := [f for f in files if not f.is_file()]:
        raise ValueError(f"no file '{lacking[0]}'; LaMP's own files go there, {name}_questions.json and {name}_outputs.json.")
    questions, outputs = (json.loads(f.read_text(encoding="utf-8")) for f in files)
    gold = {str(g["id"]): str(g["output"]) for g in outputs["golds"]}
    fields, label = FIELDS[task]
    out: list[User] = []
    for i, q in enumerate(questions):
        if str(q["id"]) not in gold:
            raise ValueError(f"{files[0]}, question {q['id']}: no answer in {files[1].name}.")
        profile = tuple(_entry(e, fields, label) for e in q["profile"])
        if split == "test" or (i % 20 == 0) == (split == "validation"):  # a twentieth of train is validation
            out.append(User(f"{files[0]}, question {q['id']}", profile, str(q["input"]), gold[str(q["id"])], LABELS.get(task, ())))
    return tuple(out)


def _entry(row: Mapping[str, Any], fields: Sequence[str], label: str) -> Entry:
    return Entry(" ".join(" ".join(str(row.get(f, "")).split()) for f in fields), str(row[label]) if label else "")
