"""`ccm traces`: the model's own right solutions, to train a memory on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def traces(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data=gsm8k generation.max_new_tokens=512")] = None,
    out: Annotated[Path, typer.Option(help="The .jsonl or .json file to write.")] = Path("traces.jsonl"),
    samples: Annotated[int, typer.Option(help="Answers to each problem; more than one needs generation.temperature.")] = 1,
    split: Annotated[str, typer.Option(help="Which problems: train, validation or test.")] = "train",
    max_problems: Annotated[int | None, typer.Option("--max-problems", help="No more problems than this.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many problems at the start: parts of a set, made side by side.")] = 0,
    wrong: Annotated[bool, typer.Option("--wrong", help="Keep wrong answers too, to train a memory alone.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers that are written at once.")] = 32,
    adapter: Annotated[str | None, typer.Option(help="An adapter folder; the same as model.adapter=.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
) -> None:
    """Let the model solve the problems of a dataset and keep the right solutions, with its full context unless scheme= is named.

    The file is read back by data=gsm8k data.path=FILE, and ccm annotate marks it. The same command goes on after an interruption.
    """
    from dataclasses import replace

    from context_memory import console, rows
    from context_memory import traces as own
    from context_memory.output import Settings

    given = list(overrides or [])
    config = rows.configure(given, recipe, adapter)
    if not any(o.startswith("scheme") for o in given):
        config = replace(config, scheme={"name": "full", "n_comp": 0})
    examples = config.training_examples() if split == "train" else config.examples(split, config.data["max_eval_samples"])
    examples = examples[skip:][: len(examples) if max_problems is None else max(0, max_problems)]
    g = config.generation
    decode = Settings(g.max_new_tokens, g.temperature, g.top_p, g.seed)
    own.check(examples, decode, out, samples, batch_size)
    lm = rows.load_row(config)
    with console.bar() as progress:
        found = own.sample(
            lm, config.encoder(lm.tokenizer), config.dataset(), examples, decode, out,
            samples=samples, batch_size=batch_size, wrong=wrong, progress=progress,
        )  # fmt: skip
    if found.cut_off or found.other_tokens or found.twice:
        which = "with a number" if wrong else "right"
        print(f"{which} but left out: {found.cut_off} cut off, {found.other_tokens} that tokenise differently, {found.twice} twice.")
    print(
        f"{found.problems} problems, {found.sampled} sampled, {found.right} right ({100 * found.right / found.sampled:.1f} %), "
        f"{found.kept} kept, {found.mean_tokens:.0f} tokens each: {out}"
    )
