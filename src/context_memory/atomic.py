"""Files that are there whole or not at all: written beside their place and renamed, so that a kill or a full disk leaves the old one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from context_memory.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`: it takes that place when the block ends, and is removed if it raises."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text, as UTF-8."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """An object that `write_json` wrote.

    Raises:
        UserError: it is none any more; `advice` says what to do.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"'{path}' is damaged; {advice}.")
    return tree
