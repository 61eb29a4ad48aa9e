"""`ccm annotate`: solutions with the places to compress written in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def annotate(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data=gsm8k data.path=my.jsonl boundary=rules")] = None,
    out: Annotated[Path, typer.Option(help="The .jsonl or .json file to write.")] = Path("annotated.jsonl"),
    split: Annotated[str, typer.Option(help="Which examples: train, validation or test.")] = "train",
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
) -> None:
    """Write <COMP> into the solutions of a dataset where a boundary policy (rules, if none is named) ends a segment.

    The file is read back by data=gsm8k data.path=FILE; a training on it compresses where the marks are.
    """
    from transformers import AutoTokenizer

    from context_memory import annotate as marks
    from context_memory.compose import load
    from context_memory.errors import UserError
    from context_memory.fetch import get

    given = list(overrides or [])
    if recipe is None and not any(o.startswith(("boundary=", "boundary.")) for o in given):
        given.append("boundary=rules")
    config = load(given, recipe)
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out must end in .jsonl or .json, got '{out}'.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder '{out.parent}'; make it first.")
    examples = config.training_examples() if split == "train" else config.examples(split, config.data["max_eval_samples"])
    found = marks.annotate(examples, config.encoder(AutoTokenizer.from_pretrained(get(config.model.name))))
    if not found.rows:
        name, tried = config.boundary["name"], found.uncut + found.unsafe
        raise UserError(f"boundary={name} ends no segment in any of {tried} solutions of the {split} split; use another one.")
    marks.write(found.rows, out)
    print(f"{len(found.rows)} solutions, {found.cuts / len(found.rows):.1f} marks each: {out}")
    if found.uncut or found.unsafe:
        print(f"left out: {found.uncut} without a boundary, {found.unsafe} that could not be read back.")
