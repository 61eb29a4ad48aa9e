"""`ccm pins train`: which tokens to keep verbatim, learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Learned pins: teach a head which tokens of a step to keep verbatim (pins=learned).")


@app.callback()
def pins() -> None:
    """Keeps `train` a command of its own."""


@app.command()
def train(
    adapter: Annotated[Path, typer.Option(help="The compression adapter that the pins are for; they are kept in its folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value; boundary= as the adapter is used with.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Tokens of a segment that are worth keeping.")] = 4,
    problems: Annotated[int, typer.Option(min=10, help="How many problems to take.")] = 200,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of AdamW.")] = 3e-4,
    width: Annotated[int, typer.Option(min=1, help="Units of the hidden layer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the division of the problems, and of the head.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write, instead of the adapter's pins.safetensors.")] = None,
) -> None:
    """Teach it from the model's own gradients: which forgotten tokens the rest of a solution would gain most from seeing.

    The table says what share of that gain is kept on problems that were not learnt from, beside the rules at the same budget.
    """
    from rich.table import Table

    from context_memory import console, head, rows, saliency, telling
    from context_memory.atomic import write_json
    from context_memory.errors import UserError
    from context_memory.pins.learned import FILE
    from context_memory.records import facts_of_this_run

    place = head.place(out, adapter / FILE)
    config = rows.configure(list(overrides or []), None, adapter)
    config.pins = {name: settings for name, settings in config.pins.items() if name == "prompt"}  # what rules keep is not forgotten
    lm = rows.load_row(config)
    encoder = config.encoder(lm.tokenizer)
    with console.bar() as progress:
        found = saliency.collect(lm, encoder, list(config.examples("train", problems)), progress)
    parts = telling.division(found.problem, seed)
    learn, test = found.part(parts["train"]), found.part(parts["test"])
    try:
        made = head.fit(learn.hidden, learn.best(budget), epochs=epochs, lr=lr, width=width, seed=seed)
    except ValueError as e:
        raise UserError(str(e)) from e
    head.save(made, place, lm.origin | {"adapter": lm.card.files if lm.card else {}, "budget": budget})
    kept = saliency.compare(made, test, encoder, budget)
    table = Table(
        title=f"share of the gain that {budget} tokens a segment keep, {len(test.ids):,} tokens of other problems", title_justify="left"
    )
    table.add_column("rule")
    table.add_column("kept %", justify="right")
    table.add_column("tokens a segment", justify="right")
    for name, (share, length) in kept.items():
        table.add_row(name, f"{100 * share:.1f}", f"{length:.1f}")
    console.terminal().print(table)
    write_json(place.with_suffix(".json"), {"budget": budget, "kept": kept, **facts_of_this_run()})
    print(f'{place}: ccm evaluate --adapter {adapter} "pins=[prompt,learned]" pins.learned.budget={budget}')
