"""Tasks of labelled rows, in folders of our own form or of MetaICL's.

MetaICL (Min et al., NAACL 2022) writes `<task>/<task>_<shots>_<seed>_<part>.jsonl`: to train on, 16384 shots of seed 100, some without a
test part (a twentieth of the rows is asked in its place); to test, 16 shots of each of five seeds, each with the same test part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from context_memory.data._fields import all_texts, listed, options_of, texts
from context_memory.data._files import Row, home, json_of, once, rows_of, shown
from context_memory.data._licences import UNKNOWN

Item = tuple[str, str, tuple[str, ...]]
"""Input, output, options."""


@dataclass(frozen=True)
class Task:
    shown: tuple[Item, ...]
    """Rows to demonstrate and to train with."""
    asked: tuple[Item, ...]
    draws: tuple[tuple[Item, ...], ...] = ()
    """The demonstrations of one seed after the other, where they are published; else they are drawn of `shown`."""


Pools = Mapping[str, Task]


def item(row: Row) -> Item:
    """Raises ValueError for a row without texts, or whose output is not among its options."""
    said_in, said_out = texts(row, "input", "output")
    return " ".join(said_in.split()), said_out, options_of(row, said_out)


@once
def pools(path: str, config: str) -> tuple[Pools, Pools]:
    """The tasks to train on, and those to test on."""
    place = home(path, "icl")
    out: list[Pools] = []
    for name in ("train", "test"):
        if config:
            tasks = all_texts(config, f"'{name}' task", listed((config, json_of(Path(config).expanduser())), name))
            found = {t: _metaicl(place / t, name) for t in tasks}
        else:
            files = sorted((place / name).glob("*.jsonl"))
            if not files:
                raise ValueError(f"no .jsonl files in '{place / name}'; for MetaICL's own folders say data.config=FILE.json.")
            rows = {f.stem: [(item(r), _part(r)) for r in rows_of(f)] for f in files}
            found = {t: Task(_those(items, "train"), _those(items, "test")) for t, items in rows.items()}
        out.append(found)
    return out[0], out[1]


def _those(items: Sequence[tuple[Item, str]], part: str) -> tuple[Item, ...]:
    return tuple(i for i, mine in items if mine == part)


def _part(row: Row) -> str:
    """Raises ValueError unless the row says which part it belongs to."""
    if (part := row[1].get("split")) not in ("train", "test"):
        raise ValueError(f"{row[0]}: 'split' must be train (demonstrations) or test (questions), got {shown(part)}.")
    return str(part)


def _metaicl(folder: Path, use: str) -> Task:
    """A task to `train` on, of the most shots there are, or to `test` on, of the fewest."""
    files: dict[str, dict[int, list[Path]]] = {"train": {}, "test": {}}
    for file in sorted(folder.glob("*.jsonl")):  # by name: 100, which is MetaICL's default, 13, 21, 42, 87
        named = re.fullmatch(rf"{re.escape(folder.name)}_(\d+)_.+_(train|test)\.jsonl", file.name)
        if named and file.stat().st_size:
            files[named[2]].setdefault(int(named[1]), []).append(file)
    train, test = files["train"], files["test"]
    if not train or (use == "test" and not test):
        lacking = f"{folder.name}_SHOTS_SEED_{'test' if train else 'train'}.jsonl"
        raise ValueError(f"no {lacking} with rows in '{folder}'; put MetaICL's there, or leave the task out.")
    asked = tuple(map(item, rows_of(test[min(test)][0]))) if test else ()
    if use == "test":
        draws = tuple(tuple(map(item, rows_of(file))) for file in train[min(train)])
        return Task(draws[0], asked, draws)
    rows = tuple(map(item, rows_of(train[max(train)][0])))
    return Task(rows, asked) if asked else Task(tuple(row for i, row in enumerate(rows) if i % 20), rows[::20])


@dataclass(frozen=True)
class Terms:
    """Of a task, as `tasks.json` has them."""

    licence: str
    permissive: bool
    """It allows redistribution and commercial use."""


@once
def terms(path: str) -> Mapping[str, Terms] | None:
    """By task; None where nothing says them."""
    note = home(path, "icl") / "tasks.json"
    return (
        {texts(r, "task")[0]: Terms(_name(r[1].get("license")), bool(r[1].get("permissive"))) for r in rows_of(note)}
        if note.is_file()
        else None
    )


def _name(licence: object) -> str:
    """Without what is remarked about it.

    >>> _name("CC-BY-4.0 (from an index)"), _name("none stated; terms of each"), _name(None)
    ('CC-BY-4.0', 'unknown', 'unknown')
    """
    name = str(licence or "").partition(" (")[0].partition(";")[0].strip()
    return name if name and not name.startswith("none") else UNKNOWN


def must_have(tasks: Pools, shown: int, asked: int) -> None:
    """Raises ValueError unless there are tasks, each with so many rows to show and to ask."""
    if not tasks:
        raise ValueError("no tasks to take rows from: none is listed, or none permissive in tasks.json (data.permissive=false takes all).")
    for task, rows in sorted(tasks.items()):
        for split, have, least in (("train", len(rows.shown), shown), ("test", len(rows.asked), asked)):
            if have < least:
                raise ValueError(f"task '{task}' needs {least} row(s) with split '{split}', has {have}; add some, or leave the task out.")
