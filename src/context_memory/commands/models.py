"""`ccm models`: which models are known by name, and what a memory of them costs; `ccm models pull NAME` gets one."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Models by name: what is known, and getting one.")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA that adapter sizes are given for.")] = 8,
    n_comp: Annotated[int, typer.Option("--n-comp", min=1, help="Comp tokens that adapter sizes are given for.")] = 2,
) -> None:
    """Print the known models with their parameters, KV bytes a token and adapter size. Downloads nothing."""
    from context_memory.console import terminal
    from context_memory.fetch import cached
    from context_memory.models import table

    if context.invoked_subcommand is None:
        terminal().print(table(rank, n_comp, cached()))


@app.command()
def pull(name: Annotated[str, typer.Argument(help="Known name, hub id, or .gguf file.")]) -> None:
    """Get a model, check it, and keep it on this machine."""
    from context_memory.fetch import get

    print(get(name))
