"""Long work whose results are lines: those that are there already, so that the same command goes on after an interruption.

They stand in `<out>.partial.jsonl` until the whole is written to `out`; its first line says with which settings they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from context_memory.errors import UserError
from context_memory.records import append, whole_lines
from context_memory.report import write_text


def partial_of(out: Path) -> Path:
    """Where lines are kept until all are there."""
    return out.with_name(f"{out.name}.partial.jsonl")


def begun(partial: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines that are there; a file that is not there yet is begun.

    Raises:
        UserError: it was begun with other settings.
    """
    found, mine = whole_lines(partial), json.loads(json.dumps(settings))
    if not found:
        write_text(partial, json.dumps({"settings": mine}, ensure_ascii=False) + "\n")
        return []
    theirs = found[0].get("settings", {})
    if changed := [k for k in sorted({*theirs, *mine}) if theirs.get(k) != mine.get(k)]:
        k = changed[0]
        raise UserError(
            f"'{partial}' was begun with {k} = {json.dumps(theirs.get(k))}, got {json.dumps(mine.get(k))}; "
            "name another --out, or delete that file."
        )
    return found[1:]


def add(partial: Path, *lines: Mapping[str, Any]) -> None:
    """Append lines."""
    append(partial, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
