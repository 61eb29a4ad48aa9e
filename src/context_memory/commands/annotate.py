"""`ccm annotate`: solutions with the places to compress written in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from context_memory.config import Config
    from context_memory.encode import Encoder
    from context_memory.endpoint import Job
    from context_memory.text import Example

KEY = "OPENAI_API_KEY"


def annotate(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data=gsm8k data.path=my.jsonl boundary=rules")] = None,
    out: Annotated[Path, typer.Option(help="The .jsonl or .json file to write.")] = Path("annotated.jsonl"),
    split: Annotated[str, typer.Option(help="Which examples: train, validation, test, or all.")] = "train",
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
    oracle: Annotated[
        float | None, typer.Option(min=1, help="Cut where compressing costs least, into segments of so many tokens on average.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="The compression adapter that --oracle (or boundary=classifier) asks.")] = None,
    endpoint: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible endpoint that does it instead.")] = "",
    model: Annotated[str, typer.Option(help="The model that the endpoint is asked for.")] = "",
    api_key_env: Annotated[str, typer.Option(help=f"Environment variable that holds the key; {KEY} if not given.")] = "",
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens that are sent.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens that are written.")] = None,
    rewrite: Annotated[bool, typer.Option("--rewrite", help="Let it write solutions of its own; the final answer must agree.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds in which a reply has to be whole.")] = 120,
    yes: Annotated[bool, typer.Option("--yes", help="Ask the endpoint without asking you.")] = False,
) -> None:
    """Write <COMP> into the solutions of a dataset, by a boundary policy, by what compressing costs, or by a model behind an endpoint.

    The policy is `rules` if none is named. With --oracle it is where compressing costs least, as the adapter itself measures it: boundary=
    says which places it may choose from, every fourth token if none is named, and boundary.max_segment how long a segment may be.

    The file is read back by data=gsm8k data.path=FILE; a training on it compresses where the marks are. The same
    command goes on after an interruption.
    """
    from transformers import AutoTokenizer

    from context_memory.client import Settings
    from context_memory.compose import load
    from context_memory.endpoint import Job
    from context_memory.errors import UserError
    from context_memory.fetch import get
    from context_memory.rows import configure

    given = list(overrides or [])
    named = any(o.startswith(("boundary=", "boundary.")) for o in given)
    if bool(endpoint) != bool(model):
        raise UserError(f"--endpoint and --model go together, and {'--model' if endpoint else '--endpoint'} is missing.")
    if endpoint and named:
        raise UserError("with --endpoint the model decides where a step ends; leave boundary= out.")
    if oracle is not None and (adapter is None or endpoint):
        raise UserError("--oracle measures with a compression adapter and asks nobody else: give --adapter, and no --endpoint.")
    if recipe is None and not named:
        given += ["boundary=rules"] if oracle is None else ["boundary=every", "boundary.n=4"]
    config = configure(given, recipe, adapter) if adapter else load(given, recipe)
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out must end in .jsonl or .json, got '{out}'.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder '{out.parent}'; make it first.")
    if out.exists() and not endpoint:
        raise UserError(f"--out={out} is there already; it is not overwritten. Name another file, or remove it.")
    examples = config.training_examples() if split == "train" else config.examples(split, config.data["max_eval_samples"])
    if wrong := config.dropped(split):
        print(f"{wrong:,} rows of the data are left out: their final answer is wrong.")
    if adapter:
        by_adapter(config, examples, oracle, out)
        return
    encoder = config.encoder(AutoTokenizer.from_pretrained(get(config.model.name)))
    if not endpoint:
        by_policy(examples, encoder.cuts, out, f"boundary={config.boundary['name']} ends no segment")
        return
    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together; say 0 for what costs nothing.")
    if api_key_env and not os.environ.get(api_key_env):
        raise UserError(f"--api-key-env={api_key_env}: there is no such environment variable, or it is empty; export it first.")
    variable = api_key_env or KEY
    settings = Settings(endpoint, model, os.environ.get(variable, "").strip(), variable, workers=workers, timeout=timeout)
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    by_endpoint(Job(examples, settings, out, rewrite), encoder, prices, yes)


def by_adapter(config: Config, examples: Sequence[Example], length: float | None, out: Path) -> None:
    """Where the model with its adapter says: as the oracle measures, or as a policy reads off its hidden states."""
    from context_memory import console, cutting, rows
    from context_memory.begun import Partial
    from context_memory.evaluate import Settings, describe
    from context_memory.oracle import Oracle

    lm = rows.load_row(config)
    encoder = config.encoder(lm.tokenizer)
    settings = describe(lm, encoder, Settings(generate=False)) | {"length": length}
    oracle = None if length is None else Oracle(length, longest=encoder.boundary.max_segment)
    partial = Partial(out, settings)
    known = {(line["prompt"], line["target"]): line["places"] for line in partial.lines}
    with console.bar() as progress:
        task = progress.add_task("solutions", total=len(examples), speed="")

        def places(example: Example) -> Sequence[int]:
            key = example.prompt, example.target
            if key not in known:
                known[key] = oracle.cuts(lm, encoder, example) if oracle else cutting.cuts(lm, encoder, example)
                partial.add({"prompt": example.prompt, "target": example.target, "places": known[key]})
            progress.update(task, advance=1)
            return known[key]

        by_policy(examples, places, out, f"boundary={config.boundary['name']} offers no place")
    partial.done()


def by_policy(examples: Sequence[Example], places: Callable[[Example], Sequence[int]], out: Path, otherwise: str) -> None:
    """Where a boundary policy ends a segment."""
    from context_memory import annotate as marks
    from context_memory.errors import UserError

    found = marks.annotate(examples, places)
    if not found.rows:
        raise UserError(f"{otherwise} in any of {found.uncut + found.unsafe} solutions; use another one.")
    marks.write(found.rows, out)
    print(f"{len(found.rows)} solutions, {found.cuts / len(found.rows):.1f} marks each: {out}")
    if found.uncut or found.unsafe:
        print(f"left out: {found.uncut} without a boundary, {found.unsafe} that could not be read back.")


def by_endpoint(job: Job, encoder: Encoder, prices: tuple[float, float] | None, yes: bool) -> None:
    """Where a model says, once it was said what that will cost."""
    from context_memory.data.gsm8k import MARKER
    from context_memory.errors import UserError

    ask = job.estimate(encoder.ids)
    cost = f", price {ask.price(*prices):,.4f}" if prices else ""
    print(
        f"{ask.requests} of {len(job.examples)} solutions to ask {job.settings.url} for: about {ask.tokens_in:,} tokens in, "
        f"{ask.tokens_out:,} out{cost}; what has to be asked again comes on top.",
        flush=True,
    )
    if ask.requests and not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to be asked whether to go on (no terminal); say --yes.")
        typer.confirm("go on?", abort=True)
    job.run()
    rows = job.finish()
    marks = sum(row["reasoning_with_compression"].count(MARKER) for row in rows)
    print(f"{len(rows)} solutions, {marks / len(rows):.1f} marks each: {job.out}")
    if left := job.reasons():
        print(f"left out: {left}.")
