"""Long work whose results are lines: those that are there already, so that the same command goes on after an interruption, a kill too.

They stand in `<out>.partial.jsonl` until the whole is written to `out`; its first line says with which settings they were made.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from context_memory.errors import UserError
from context_memory.records import append, whole_lines


def partial_of(out: Path) -> Path:
    """Where lines are kept until all are there."""
    return out.with_name(f"{out.name}.partial.jsonl")


class Partial:
    """The lines that are there, and where more go; several threads may add.

    Raises:
        UserError: it was begun with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = partial_of(out), json.loads(json.dumps(settings))
        self._lock = threading.Lock()
        found = whole_lines(self.path)
        theirs = found[0].get("settings", {}) if found else self.settings
        for k in sorted({*theirs, *self.settings}):
            if theirs.get(k) != self.settings.get(k):
                raise UserError(
                    f"'{self.path}' was begun with {k} = {_short(theirs.get(k))}, got {_short(self.settings.get(k))}; "
                    "name another --out, or delete that file to begin again."
                )
        self.lines: list[dict[str, Any]] = found[1:]
        if self.path.is_file():  # killed while it wrote: half a line
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        self._size = self._now()

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Append, and push to the disk.

        Raises:
            UserError: the file is not as this object left it: another process is at the same work.
        """
        with self._lock:
            if (size := self._now()) != self._size:
                raise UserError(f"another process writes '{self.path}'; let it finish, or name another --out.")
            head = [] if size else [{"settings": self.settings}]
            append(self.path, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in (*head, *lines)))
            self.lines += map(dict, lines)
            self._size = self._now()

    def _now(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def done(self) -> None:
        """All is written elsewhere."""
        self.path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
