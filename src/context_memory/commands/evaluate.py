"""`ccm evaluate`: what an adapter's memory costs and what it keeps, beside the full context and none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data=tally evaluation.max_samples=100")] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter folder; the same as model.adapter=.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="One more row: an adapter folder, or name=folder.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="key=value,value: a row for each; several give all combinations, without settings that a plug-in lacks."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without the rows full and nothing.")] = False,
    window: Annotated[
        bool, typer.Option("--window", help="A control for each: a sliding window as large at the peak, the same pins, nothing trained.")
    ] = False,
    run_id: Annotated[str | None, typer.Option("--run_id", "--run-id", help="Name of the run; the same name goes on.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings, and the adapter that ccm train made of it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to, instead of result/<data>/<run_id>/evaluation.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds and start anew.")] = False,
) -> None:
    """Evaluate an adapter, or a scheme that needs none, on a dataset; rows full and nothing beside it.

    With --recipe or --run_id alone: the adapter that ccm train made of it.
    """
    from dataclasses import replace

    from context_memory import console, control, report, rows
    from context_memory.errors import UserError
    from context_memory.overrides import written

    given = list(overrides or [])
    given += [f"run_id={written(run_id)}"] if run_id else []
    chosen = adapter or rows.trained(given, recipe, needed=False)
    config = rows.configure(given, recipe, chosen)
    others = [_other(text, given, recipe) for text in row or []]
    own = rows.sweep(sweep, given, recipe, chosen) if sweep else [(config.scheme["name"], config)]
    if others and config.scheme["name"] in rows.ENDS and not sweep:
        own = []  # the rows that were named are what is asked for
    named = [(name, replace(c, data=config.data, evaluation=config.evaluation)) for name, c in [*own, *others]]
    beside = [control.window(rows.Row(name, c), f"window for {name}" if len(named) > 1 else "") for name, c in named if window]
    table = rows.rows_of(config, [*named, *((r.name, r.config) for r in beside)], ends=not alone)
    folder = out or _folder(config)
    failed: list[str] = []
    with console.bar() as progress:
        records = rows.run(table, folder, fresh=fresh, progress=progress, failed=failed)
    if records:
        report.publish(records, folder)
    if wrong := config.dropped(config.evaluation.split):
        print(f"{wrong:,} rows of the data are not among the items: their final answer is wrong.")
    if failed:
        raise UserError("\n".join([*failed, *(["the other rows are done."] if records else [])]))


def _other(text: str, given: list[str], recipe: str | None):  # type: ignore[no-untyped-def]  # (name, Config)
    from context_memory import rows
    from context_memory.adapter import called

    name, equals, path = text.rpartition("=")
    rest = [o for o in given if not o.startswith(("model.adapter=", "scheme", "boundary", "pins"))]
    config = rows.configure(rest, recipe, path)
    return (name if equals else called(path)), config


def _folder(config) -> Path:  # type: ignore[no-untyped-def]  # Config
    """`result/<data>/<run_id>/evaluation`; without a run_id it is called after the adapter."""
    from context_memory.adapter import called

    run_id = config.run_id
    if not run_id:
        adapter = config.model.adapter
        run_id = called(adapter) if adapter else f"{Path(config.model.name).name}-{config.scheme['name']}"
    return config.home() / run_id / "evaluation"
