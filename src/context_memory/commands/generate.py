"""`ccm generate`: one question, answered while the memory is compressed; then what that memory held."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def generate(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. generation.max_new_tokens=64 boundary=rules")] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter folder; the same as model.adapter=.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings, and the adapter that ccm train made of it.")] = None,
) -> None:
    """Answer a question, piece by piece. Without an adapter and a scheme: the plain model with its full context."""
    from context_memory import rows
    from context_memory.encoder_generate import decoder as decoder_of
    from context_memory.errors import UserError
    from context_memory.output import Settings

    given = list(overrides or [])
    found = adapter or rows.trained(given, recipe)
    chosen = found or recipe or any(o.startswith(("model.adapter=", "scheme=")) for o in given)
    config = rows.configure(given if chosen else [*given, "scheme=full"], recipe, found)
    if not question.strip():
        raise UserError("the question is empty; ask something.")
    lm, g = rows.load_row(config), config.generation
    encoder = config.encoder(lm.tokenizer)
    settings = Settings(g.max_new_tokens, g.temperature, g.top_p, g.seed)
    try:
        decoder = decoder_of(lm, encoder, [encoder.asked(question, first=True)], settings)
        for piece in decoder.pieces():
            print(piece, end="", flush=True)
    except ValueError as e:
        raise UserError(str(e)) from e
    out = decoder.outputs[0]
    whole = out.prompt_tokens + max(0, len(out.ids) - 1)
    print()
    facts = (
        f"{lm.scheme.name}: {len(out.ids)} tokens, ended by {out.reason}; {out.compressions} compressions",
        f"at most {out.peak_kv_tokens} entries a layer held ({out.peak_kv_bytes / 1e6:.2f} MB)",
        f"{out.peak_reasoning_kv_tokens} of them beside the question; uncompressed it would end at {whole}",
    )
    print(f"[{', '.join(facts)}]", file=sys.stderr)
    if lm.scheme.hides and not out.compressions:
        print(f"nothing was compressed: boundary={config.boundary['name']} ended no segment before the answer did.", file=sys.stderr)
