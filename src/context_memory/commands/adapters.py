"""`ccm adapters`: which adapters are there, for which model, and what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def adapters(
    folders: Annotated[list[Path] | None, typer.Argument(help="Where to look; `adapters` if nothing is named.")] = None,
    base: Annotated[str, typer.Option("--for", help="Of this model alone.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON, licences as well.")] = False,
) -> None:
    """List the adapters in a folder: base model, scheme, boundary, pins, data, and the task adapter that each stands on. Loads no model."""
    import json
    from dataclasses import asdict

    from context_memory.console import terminal
    from context_memory.shelf import entries, table

    found = entries(folders or [Path("adapters")], base)
    if as_json:
        print(json.dumps([asdict(e) for e in found], indent=2, ensure_ascii=False))
    else:
        for model in dict.fromkeys(e.base for e in found):
            terminal().print(table([e for e in found if e.base == model], model or "damaged"))
