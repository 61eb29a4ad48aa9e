"""Tasks of labelled rows, in folders of our own form or of MetaICL's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from context_memory.data._files import Row, home, rows_of, texts

Item = tuple[str, str, tuple[str, ...]]
"""Input, output, options."""
Pools = Mapping[str, tuple[tuple[Item, ...], tuple[Item, ...]]]
"""Task -> rows to demonstrate and to train with, and rows to ask."""


def item(row: Row) -> Item:
    """Raises ValueError for a row without texts, or whose output is not among its options."""
    said_in, said_out = texts(row, "input", "output")
    options = tuple(row[1].get("options") or ())
    if options and (said_out not in options or not all(isinstance(o, str) and o.strip() for o in options)):
        raise ValueError(f"{row[0]}: output {said_out!r} must be one of the options {list(options)}, which are texts.")
    return " ".join(said_in.split()), said_out, options


@lru_cache(maxsize=4)
def pools(path: str, config: str) -> tuple[Pools, Pools]:
    """The tasks to train on, and those to test on."""
    place = home(path, "icl")
    out: list[Pools] = []
    for name in ("train", "test"):
        if config:
            tasks = json.loads(Path(config).expanduser().read_text(encoding="utf-8"))[name]
            found = {t: tuple(tuple(map(item, _metaicl(place / t, part))) for part in ("train", "test")) for t in tasks}
        else:
            files = sorted((place / name).glob("*.jsonl"))
            if not files:
                raise ValueError(f"no .jsonl files in '{place / name}'; for MetaICL's own folders say data.config=FILE.json.")
            rows = {f.stem: rows_of(f) for f in files}
            found = {t: tuple(tuple(item(r) for r in rs if r[1].get("split") == s) for s in ("train", "test")) for t, rs in rows.items()}
        out.append(found)  # type: ignore[arg-type]
    return out[0], out[1]


def _metaicl(folder: Path, part: str) -> list[Row]:
    files = sorted(folder.glob(f"{folder.name}_*_{part}.jsonl"))
    if not files:
        raise ValueError(f"no {folder.name}_*_{part}.jsonl in '{folder}'.")
    return rows_of(files[0])


@lru_cache(maxsize=4)
def permissive(path: str) -> frozenset[str] | None:
    """The tasks whose licence allows redistribution and commercial use; None where nothing says so."""
    note = home(path, "icl") / "tasks.json"
    rows = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    return frozenset(r["task"] for r in rows if r["permissive"]) if rows is not None else None
