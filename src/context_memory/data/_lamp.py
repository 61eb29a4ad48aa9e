"""Users with a profile: rows of our own form, and LaMP's seven tasks as they were published.

LaMP (Salemi et al., ACL 2024): `<split>_questions.json` [{id, input, profile: [{id, ...}]}] and `<split>_outputs.json` {golds: [{id,
output}]} in a folder a task (`LaMP_2/`, or the folder itself). The profile's fields differ from task to task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from context_memory.data._fields import listed, options_of, spoken
from context_memory.data._files import Row, fields_of, json_of, rows_of


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
        ValueError: a field is missing, or not what it should be.
    """
    prompt, target = spoken(row, "input", "output")
    profile = []
    for i, fields in enumerate(listed(row, "profile"), 1):
        entry = (f"{row[0]}, profile entry {i}", fields)
        (text,) = spoken(entry, "text")
        profile.append(Entry(text, *(spoken(entry, "rating") if fields.get("rating") not in (None, "") else ())))
    return User(row[0], tuple(profile), prompt, target, options_of(row, target))


def lamp(folder: Path, task: int, split: str) -> tuple[User, ...]:
    """The users of a split.

    Raises:
        ValueError: a file is not there or damaged, or a question has no answer.
    """
    place = next((p for p in (folder / f"LaMP_{task}", folder / f"LaMP-{task}") if p.is_dir()), folder)
    name = {"train": "train", "validation": "train", "test": "dev"}[split]
    files = [place / f"{name}_{part}.json" for part in ("questions", "outputs")]
    if lacking := [f for f in files if not f.is_file()]:
        raise ValueError(f"no file '{lacking[0]}'; LaMP's own files go there, {name}_questions.json and {name}_outputs.json.")
    golds = enumerate(listed((str(files[1]), json_of(files[1])), "golds"), 1)
    gold = dict(spoken((f"{files[1]}, answer {i}", g), "id", "output") for i, g in golds)
    out: list[User] = []
    for i, (row, q) in enumerate(rows_of(files[0])):
        (name,) = spoken((row, q), "id")
        where = f"{files[0]}, question {name}"
        if name not in gold:
            raise ValueError(f"{where}: no answer in {files[1].name}; are the two files of one task and split?")
        entries = [_entry((f"{where}, profile entry {j}", e), *FIELDS[task]) for j, e in enumerate(listed((where, q), "profile"), 1)]
        profile = tuple(e for e in entries if e is not None)
        options = options_of((where, {"options": list(LABELS.get(task, ()))}), gold[name])
        if split == "test" or (i % 20 == 0) == (split == "validation"):  # a twentieth of train is validation
            (question,) = spoken((where, q), "input")
            out.append(User(where, profile, question, gold[name], options))
    return tuple(out)


def _entry(row: Row, names: Sequence[str], label: str) -> Entry | None:
    """None for one without a text, of which published files have some."""
    fields = fields_of(row)
    text = " ".join(" ".join(str(fields.get(name) or "").split()) for name in names)
    if not text.strip():
        return None
    return Entry(text, *(spoken(row, label) if label else ()))
