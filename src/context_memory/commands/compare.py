"""`ccm compare`: rows that were evaluated at different times, in one table and one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluations, of their rows, or of runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the plots; result/compare/<runs> if not given.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="What all are compared with, whatever their model: an evaluation's full row (a fine-tune), or any single row."),
    ] = None,
) -> None:
    """Join evaluations in one table; every row is compared with the full one of its model on the items that both answered."""
    from context_memory import records, report
    from context_memory.errors import UserError
    from context_memory.rows import slug

    runs = [r for r in runs if not r.is_file()] or runs  # FOLDER/* names the tables and plots among the rows too
    found = records.gather(runs)
    if short := [r for r in found if r.lines and {p.key for p in r.lines} != {p.key for p in found[0].lines}]:
        names = ", ".join(r.name for r in short)
        print(f"note: {names} answered other items than {found[0].name}; rows are compared on the items that both have.")
    there = records.gather([against]) if against else []
    other = [r for r in there if r.scheme == "full"] or there
    if len({r.name for r in other}) > 1:
        names = ", ".join(r.name for r in other)
        raise UserError(f"--against '{against}' holds {names} and none of them is full; name the folder of the one to compare with.")
    folder = out or Path("result") / "compare" / slug(" ".join(records.run_name(r) for r in runs))
    report.publish(found, folder, other)
