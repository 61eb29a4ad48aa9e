"""Tasks of labelled rows, in folders of our own form or of MetaICL's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from context_memory.data._fields import all_texts, listed, options_of, texts
from context_memory.data._files import Row, home, json_of, once, rows_of, shown

Item = tuple[str, str, tuple[str, ...]]
"""Input, output, options."""
Pools = Mapping[str, tuple[tuple[Item, ...], tuple[Item, ...]]]
"""Task -> rows to demonstrate and to train with, and rows to ask."""


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
            found = {t: tuple(tuple(map(item, _metaicl(place / t, part))) for part in ("train", "test")) for t in tasks}
        else:
            files = sorted((place / name).glob("*.jsonl"))
            if not files:
                raise ValueError(f"no .jsonl files in '{place / name}'; for MetaICL's own folders say data.config=FILE.json.")
            rows = {f.stem: [(item(r), _part(r)) for r in rows_of(f)] for f in files}
            found = {t: tuple(tuple(i for i, mine in items if mine == s) for s in ("train", "test")) for t, items in rows.items()}
        out.append(found)  # type: ignore[arg-type]
    return out[0], out[1]


def _part(row: Row) -> str:
    """Raises ValueError unless the row says which part it belongs to."""
    if (part := row[1].get("split")) not in ("train", "test"):
        raise ValueError(f"{row[0]}: 'split' must be train (demonstrations) or test (questions), got {shown(part)}.")
    return str(part)


def _metaicl(folder: Path, part: str) -> list[Row]:
    files = sorted(folder.glob(f"{folder.name}_*_{part}.jsonl"))
    if not files:
        raise ValueError(f"no {folder.name}_*_{part}.jsonl in '{folder}'.")
    return rows_of(files[0])


@once
def permissive(path: str) -> frozenset[str] | None:
    """The tasks whose licence allows redistribution and commercial use; None where nothing says so."""
    note = home(path, "icl") / "tasks.json"
    return frozenset(texts(r, "task")[0] for r in rows_of(note) if r[1].get("permissive")) if note.is_file() else None


def must_have(tasks: Pools, shown: int, asked: int) -> None:
    """Raises ValueError unless there are tasks, each with so many rows to show and to ask."""
    if not tasks:
        raise ValueError("no tasks to take rows from: none is listed, or none permissive in tasks.json (data.permissive=false takes all).")
    for task, (first, second) in sorted(tasks.items()):
        for split, have, least in (("train", len(first), shown), ("test", len(second), asked)):
            if have < least:
                raise ValueError(f"task '{task}' needs {least} row(s) with split '{split}', has {have}; add some, or leave the task out.")
