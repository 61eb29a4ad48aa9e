"""Users with a profile: rows of our own form, and LaMP's seven tasks as they were published.

LaMP (Salemi et al., ACL 2024): `<split>_questions.json` [{id, input, profile: [{id, ...}]}] and `<split>_outputs.json` {golds: [{id,
output}]} in a folder a task (`LaMP_2/`, or the folder itself). The profile's fields differ from task to task, and those of LaMP-2
tell which of two it is: films and their tags, or what it was at first (as in the paper), articles and their sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    name: str = ""
    """Who it is, where several rows are of one user."""


@dataclass(frozen=True)
class Task:
    text: tuple[str, ...]
    """The fields of an entry that are its text."""
    label: tuple[str, ...] = ()
    """Those that may be its label: the first that is there."""
    options: tuple[str, ...] = ()
    """Answers to choose among; without them a text is written."""


TAGS = ("sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology", "fantasy",
        "romance", "thought-provoking", "social commentary", "violence", "true story")  # fmt: skip
SECTIONS = ("women", "religion", "politics", "style & beauty", "entertainment", "culture & arts", "sports", "science & technology",
            "travel", "business", "crime", "education", "healthy living", "parents", "food & drink")  # fmt: skip
NEWS = Task(("text",), ("category",), SECTIONS)
"""The old LaMP-2. An article has a title as well, which neither LaMP's prompts show nor its questions."""
TASKS: Mapping[int, Task] = {
    1: Task(("title", "abstract"), (), ("[1]", "[2]")),
    2: Task(("description",), ("tag",), TAGS),
    3: Task(("text",), ("score",), ("1", "2", "3", "4", "5")),
    4: Task(("text",), ("title",)),
    5: Task(("abstract",), ("title",)),
    6: Task(("text",), ("title", "subject")),  # `title` is what LaMP's own script calls an e-mail's subject
    7: Task(("text",)),
}


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
    return User(row[0], tuple(profile), prompt, target, options_of(row, target), str(row[1].get("user", "")))


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
    rows = rows_of(files[0])
    kind = NEWS if task == 2 and "category" in _first(rows) else TASKS[task]
    golds = enumerate(listed((str(files[1]), json_of(files[1])), "golds"), 1)
    gold = dict(spoken((f"{files[1]}, answer {i}", g), "id", "output") for i, g in golds)
    out: list[User] = []
    for i, (row, q) in enumerate(rows):
        (name,) = spoken((row, q), "id")
        where = f"{files[0]}, question {name}"
        if name not in gold:
            raise ValueError(f"{where}: no answer in {files[1].name}; are the two files of one task and split?")
        entries = [_entry((f"{where}, profile entry {j}", e), kind) for j, e in enumerate(listed((where, q), "profile"), 1)]
        profile = tuple(e for e in entries if e is not None)
        options = options_of((where, {"options": list(kind.options)}), gold[name])
        if split == "test" or (i % 20 == 0) == (split == "validation"):  # a twentieth of train is validation
            (question,) = spoken((where, q), "input")
            out.append(User(where, profile, question, gold[name], options))
    return tuple(out)


def _first(rows: Sequence[Row]) -> Mapping[str, Any]:
    """The first entry of all profiles."""
    profiles = (q["profile"] for _, q in rows if isinstance(q.get("profile"), list))
    return next((e for profile in profiles for e in profile if isinstance(e, Mapping)), {})


def _entry(row: Row, kind: Task) -> Entry | None:
    """None for one without a text, of which published files have some. A label that is empty is none."""
    fields = fields_of(row)
    text = " ".join(filter(None, (" ".join(str(fields.get(name) or "").split()) for name in kind.text)))
    if not text:
        return None
    label = next((name for name in kind.label if name in fields), "".join(kind.label[:1]))
    if not label or fields.get(label) == "":
        return Entry(text)
    (given,) = spoken(row, label)
    return Entry(text, " ".join(given.split()))
