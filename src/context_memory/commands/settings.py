"""`ccm settings`: what can be set, what it is, and what it does."""

from __future__ import annotations

from typing import Annotated

import typer


def settings(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="A group or key to show, as in training or scheme.n_comp; key=value to see what becomes of the rest."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; show what it comes to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the settings that train, evaluate, generate and chat take as key=value, with their values and what they do.

    A star marks what is not as usual. ccm settings scheme lists the schemes; ccm settings scheme=merge scheme the settings of that one.
    """
    import json
    from dataclasses import asdict

    from context_memory.catalogue import settings as settings_
    from context_memory.catalogue import table
    from context_memory.console import terminal

    found = settings_(words or (), recipe)
    if as_json:
        print(json.dumps([asdict(s) for s in found], indent=2, ensure_ascii=False))
    else:
        terminal().print(table(found))
