"""`ccm quickstart`: train a memory, use it, and see what it costs, in a quarter of an hour on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. scheme.n_comp=4")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps, four problems: only to see that it runs.")] = False,
    problems: Annotated[int | None, typer.Option(min=1, help="Held-out problems to evaluate on.")] = None,
    task: Annotated[Path | None, typer.Option(help="Another task adapter than the shipped one.")] = None,
    shipped: Annotated[Path | None, typer.Option(help="Another compression adapter than the shipped one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; result/quickstart if not given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier quickstart left there.")] = False,
) -> None:
    """Get the embedded model, train a memory on tally, and compare it with the shipped one, full context and nothing."""
    from context_memory import quickstart as story

    plan = story.plan(overrides or [], task=task, shipped=shipped, smoke=smoke, problems=problems, out=out)
    story.run(plan, fresh)
