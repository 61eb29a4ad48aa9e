"""What adapters lie in a folder, as their cards say: for which model, what they keep, what has to lie beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from context_memory import plugins
from context_memory.adapter import CARD, called, read_card
from context_memory.errors import UserError
from context_memory.loading import task_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Entry:
    """An adapter folder in words."""

    folder: str
    base: str = ""
    scheme: str = ""
    boundary: str = ""
    pins: str = ""
    data: str = ""
    task: str = ""
    """The folder of the task adapter that is merged first; empty where there is none."""
    licence: str = ""
    megabytes: float = 0.0
    trouble: str = ""
    """Why it cannot be loaded; empty where it can."""


def entries(places: Iterable[Path], base: str = "") -> list[Entry]:
    """The adapters in and below `places`, in order of their paths; of one model alone if `base` is named.

    Raises:
        UserError: a place that is not there, or no adapter in any of them.
    """
    places = list(places)
    for place in places:
        if not place.is_dir():
            raise UserError(f"no folder '{place}'; give one that holds adapters, as `adapters` or `result`.")
    cards = sorted({c for place in places for c in place.rglob(CARD) if not any(p.startswith(".") for p in c.relative_to(place).parts)})
    found = [_entry(card.parent) for card in cards]
    kept = [e for e in found if base in ("", e.base)]
    if not kept:
        there = ", ".join(sorted({e.base for e in found if e.base}))
        of = f" of model '{base}', but of {there}" if base and there else ""
        raise UserError(f"no adapter{of} in {', '.join(map(repr, map(str, places)))}; `ccm train` makes one.")
    return kept


def _entry(folder: Path) -> Entry:
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6
    try:
        card = read_card(folder)
    except UserError as e:
        return Entry(str(folder), megabytes=size, trouble=str(e))
    data = card.config.get("data", {})
    task, trouble = "", ""
    if card.task is not None:
        task = called(card.task.path)
        try:
            task_of(folder, card)
        except UserError as e:
            trouble = str(e)
    return Entry(
        str(folder),
        base=card.base.name,
        scheme="task adapter" if card.is_task else plugins.title("schemes", card.scheme),
        boundary=plugins.title("boundaries", card.boundary),
        pins=", ".join(plugins.title("pins", {**own, "name": name}) for name, own in card.pins.items()),
        data=", ".join(data.get("parts") or [data.get("name", "")]),
        task=task,
        licence=card.licence,
        megabytes=size,
        trouble=trouble,
    )


def table(found: Sequence[Entry], title: str = "") -> Table:
    """As `ccm adapters` prints those of one model."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    out = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    out.add_column("adapter", overflow="fold")
    for head in ("scheme, boundary, pins", "trained on"):
        out.add_column(head)
    out.add_column("MB", justify="right")
    for e in found:
        name = e.folder + (f"\n  on top of {e.task}" if e.task else "")
        what = f"[red]{escape(e.trouble)}[/red]" if e.trouble else "; ".join((e.scheme, e.boundary, e.pins))
        out.add_row(name, what, e.data, f"{e.megabytes:.1f}")
    return out
